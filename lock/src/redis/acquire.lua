-- KEYS: the session, the lock. ARGV: session, request, floor, whether to wait, the number of the
-- grant, how many requests a session may have. Answers a status and the number of the grant.
local session, lock = KEYS[1], KEYS[2]
local request, floor = tonumber(ARGV[2]), tonumber(ARGV[3])
local least = tonumber(redis.call('HGET', session, 'floor'))
if not least then
    return { 'no session', '' }
end
local known = redis.call('HGET', session, ARGV[2])
-- Waits are fields of their own: a renewal looks at what is held only.
local waits = redis.call('HGET', session, 'w' .. ARGV[2])
local asked = known or waits
if asked and asked ~= lock or not asked and request < least then
    return { 'stale', '' }
end
-- Of requests below the floor only those that hold or wait for a lock are kept.
if floor > least then
    if floor - least > 100000 then
        return { 'requests', '' }
    end
    for ended = least, floor - 1 do
        local field = string.format('%.0f', ended)
        if redis.call('HGET', session, field) == '' then
            redis.call('HDEL', session, field)
        end
    end
    redis.call('HSET', session, 'floor', ARGV[3])
end
local holder = redis.call('HMGET', lock, 'session', 'request', 'number')
if holder[1] == ARGV[1] and holder[2] == ARGV[2] then
    return { 'granted', holder[3] }
end
if known then
    -- What it held has vanished: evicted, deleted, or lost with the data. So is the session.
    redis.call('DEL', session)
    return { 'no session', '' }
end
if holder[1] and ARGV[4] ~= '1' then
    redis.call('HDEL', session, 'w' .. ARGV[2])
    redis.call('HSET', session, ARGV[2], '')
    return { 'busy', '' }
end
if not waits and redis.call('HLEN', session) > tonumber(ARGV[6]) then
    return { 'requests', '' }
end
if holder[1] then
    if not waits then
        redis.call('HSET', session, 'w' .. ARGV[2], lock)
    end
    return { 'queued', '' }
end
redis.call('HDEL', session, 'w' .. ARGV[2])
redis.call('HSET', session, ARGV[2], lock)
redis.call('HSET', lock, 'session', ARGV[1], 'request', ARGV[2], 'number', ARGV[5])
-- It ends with the session, unless both are renewed.
redis.call('PEXPIRE', lock, redis.call('PTTL', session))
return { 'granted', ARGV[5] }
