-- Lua's libraries are not there while this library loads, and finding one by its global name costs as much as packing
-- a field: so the functions are fetched once, at the first call, into locals.
local pack, unpack_from, sub, byte, rep, find, match, format, concat, floor, ceil, min, max

local function fetch_libraries()
  pack, unpack_from = struct.pack, struct.unpack
  sub, byte, rep, find, match, format = string.sub, string.byte, string.rep, string.find, string.match, string.format
  concat, floor, ceil, min, max = table.concat, math.floor, math.ceil, math.min, math.max
end

-- Registers a function of the library: callback(keys, args). flag: 'no-writes' for one that may run on a replica,
-- 'allow-oom' for one that frees memory.
local function register(name, callback, flag)
  redis.register_function({
    function_name = name,
    flags = { flag },
    callback = function(keys, args)
      if not pack then fetch_libraries() end
      return callback(keys, args)
    end,
  })
end

-- Errors end a call before its first write. The first word says what it is; engine/shard.py maps it.
local function fail(word, detail) error({ err = word .. ' ' .. detail }) end
local function corrupt(detail) fail('CORRUPT', detail) end
local function invalid(detail) fail('INVALID', detail) end

-- A whole number with |n| <= 2^53-1; false for NaN and the infinities too.
local function is_whole(n) return n % 1 == 0 and n <= MAX_AMOUNT and n >= -MAX_AMOUNT end
local function is_count(n) return n % 1 == 0 and n <= MAX_AMOUNT and n >= 0 end

-- Appends what HMGET answers for fields[1..count] of a hash to found: field -> value. HMGET itself answers a key of
-- another type with an error.
local function read_fields(key, fields, count, found)
  for from = 1, count, CHUNK do
    local values = redis.call('HMGET', key, unpack(fields, from, min(from + CHUNK - 1, count)))
    for j = 1, #values do
      local value = values[j]
      if value then found[fields[from + j - 1]] = value end
    end
  end
end

-- Calls a command whose arguments after its key are items[1..count]; chunks hold whole groups of items.
local function call_in_chunks(command, key, items, count)
  for from = 1, count, CHUNK do
    redis.call(command, key, unpack(items, from, min(from + CHUNK - 1, count)))
  end
end
