-- KEYS: the session. ARGV: session, request. Deletes the lock if the request holds it still, and
-- refuses the request if it comes later.
local least = tonumber(redis.call('HGET', KEYS[1], 'floor'))
if not least then
    return { 'no session', '' }
end
local lock = redis.call('HGET', KEYS[1], ARGV[2])
if lock and lock ~= '' then
    local holder = redis.call('HMGET', lock, 'session', 'request')
    if holder[1] == ARGV[1] and holder[2] == ARGV[2] then
        redis.call('DEL', lock)
    end
end
redis.call('HDEL', KEYS[1], 'w' .. ARGV[2])
if tonumber(ARGV[2]) < least then
    redis.call('HDEL', KEYS[1], ARGV[2])
else
    redis.call('HSET', KEYS[1], ARGV[2], '')
end
return { 'done', '' }
