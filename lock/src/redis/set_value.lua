-- KEYS: the session, the lock. ARGV: session, number of the grant, number of the value, value.
if redis.call('EXISTS', KEYS[1]) == 0 then
    return { 'no session', '' }
end
local holder = redis.call('HMGET', KEYS[2], 'session', 'number', 'written')
if holder[1] ~= ARGV[1] or holder[2] ~= ARGV[2] then
    return { 'not held', '' }
end
if tonumber(ARGV[3]) > tonumber(holder[3] or '0') then
    redis.call('HSET', KEYS[2], 'written', ARGV[3], 'value', ARGV[4])
end
return { 'done', '' }
