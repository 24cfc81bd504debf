-- Errors end a call before its first write. The first word says what it is; engine/batcher.py maps it.
local function fail(word, detail) error({ err = word .. ' ' .. detail }) end
local function corrupt(detail) fail('CORRUPT', detail) end

-- A whole number with |n| <= 2^53-1; false for NaN and the infinities too.
local function is_whole(n) return n % 1 == 0 and n <= MAX_AMOUNT and n >= -MAX_AMOUNT end
local function is_count(n) return n % 1 == 0 and n <= MAX_AMOUNT and n >= 0 end
