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
    local values = redis.call('HMGET', key, unpack(fields, from, math.min(from + CHUNK - 1, count)))
    for j = 1, #values do
      local value = values[j]
      if value then found[fields[from + j - 1]] = value end
    end
  end
end

-- Calls a command whose arguments after its key are items[1..count]; chunks hold whole groups of items.
local function call_in_chunks(command, key, items, count)
  for from = 1, count, CHUNK do
    redis.call(command, key, unpack(items, from, math.min(from + CHUNK - 1, count)))
  end
end
