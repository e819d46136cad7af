-- Says which list of prices is the ledger's last, if that was read a moment ago: whoever was frozen since says nothing.
-- KEYS  list
-- ARGV  name read_us>=0 fresh_us>=0
--
-- read_us  Redis TIME before the ledger was read
-- Returns 1: said; 0: too late.
if clock(0) - read_us > fresh_us then return 0 end
redis.call('SET', list_key, name)
return 1
