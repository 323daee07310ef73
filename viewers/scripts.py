"""The Lua functions that run inside the store. The shebang makes the server refuse them *before* they start when it is out
of memory or cannot write its log; Lua has no rollback, so each ends in at most one HSET.

`tests/contract` holds each against its Python twin in `memory_store.py`.
"""

WRITE_VIEWER = """#!lua
-- KEYS[1] viewer hash, KEYS[2] the highest activation announced (asked only for a viewer who has no row to refuse by, or one
-- that the sweep cannot have seen would be left behind), KEYS[3] present while rows are frozen.
-- ARGV: expected token, new token, activation (decimal), state, vector, row, what becomes of the row (viewers/store.py: Rows).
-- Returns {1} written, {0, control, state} somebody else wrote, {2, activation} the stored activation is newer, {3} frozen or not.
local control = redis.call('HGET', KEYS[1], 'c')
local token = control and string.sub(control, 1, 8)
if token == ARGV[2] then return {1} end
local keeps = ARGV[7] == 'keep' or ARGV[7] == 'empty'
if ARGV[7] ~= '' and (redis.call('GET', KEYS[3]) ~= false) ~= keeps then return {3} end
if control then
  local activation = tonumber(string.sub(control, 9))
  if not keeps and activation > tonumber(ARGV[3]) then return {2, activation} end
  if token ~= ARGV[1] then return {0, control, redis.call('HGET', KEYS[1], 's')} end
elseif ARGV[1] ~= '' then
  return {0, '', ''}
elseif not keeps then
  local announced = tonumber(redis.call('GET', KEYS[2]) or '0')
  if announced > tonumber(ARGV[3]) then return {2, announced} end
end
if keeps then
  local kept = ARGV[2] .. (control and string.sub(control, 9) or '0')
  if ARGV[7] == 'keep' and control then
    redis.call('HSET', KEYS[1], 'c', kept, 's', ARGV[4])
  else
    redis.call('HSET', KEYS[1], 'c', kept, 's', ARGV[4], 'v', '', 'r', '')
  end
  return {1}
end
redis.call('HSET', KEYS[1], 'c', ARGV[2] .. ARGV[3], 's', ARGV[4], 'v', ARGV[5], 'r', ARGV[6])
return {1}
"""

_IDENTITY = """
local function identity()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  return run_id .. ':' .. replid
end
"""

READ_IDENTITY = f"""#!lua flags=no-writes,allow-stale
{_IDENTITY}
return identity()
"""

WRITE_MARKER = f"""#!lua
-- KEYS[1] marker hash. ARGV: expected identity, expected next ('' for no marker), next, origin,
-- applied, noop, private, dead, absent (to be added), anchor ('' leaves the stored one), end of a declared gap (0 likewise).
-- Returns '' when written, else what was found instead.
{_IDENTITY}
local found = identity()
if found ~= ARGV[1] then return 'server ' .. found end
local m = redis.call('HMGET', KEYS[1], 'next', 'origin', 'applied', 'noop', 'private', 'dead', 'absent', 'anchor', 'gap_end')
if (m[1] or '') ~= ARGV[2] then return 'marker ' .. (m[1] or 'absent') end
local sums = {{}}
for i = 1, 5 do sums[i] = string.format('%d', tonumber(m[i + 2] or '0') + tonumber(ARGV[i + 4])) end
redis.call('HSET', KEYS[1], 'next', ARGV[3], 'origin', m[2] or ARGV[4],
  'applied', sums[1], 'noop', sums[2], 'private', sums[3], 'dead', sums[4], 'absent', sums[5],
  'anchor', ARGV[10] ~= '' and ARGV[10] or m[8] or '', 'gap_end', ARGV[11] ~= '0' and ARGV[11] or m[9] or '0')
return ''
"""

WRITE_RECORD = f"""#!lua
-- KEYS[1] what a completed rebuild is recorded in. ARGV: expected identity, then SET or HSET and its arguments.
-- A rebuild is no part of the log: recorded in a server that has lost its hashes, it would never be done again.
-- Returns '' when written, else what was found instead.
{_IDENTITY}
local found = identity()
if found ~= ARGV[1] then return 'server ' .. found end
redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
return ''
"""

RAISE_TO = """#!lua
-- KEYS[1] string. ARGV[1] decimal: stored if greater than what is there. Returns what is there then.
local value = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) > value then
  redis.call('SET', KEYS[1], ARGV[1])
  return tonumber(ARGV[1])
end
return value
"""

HOLD = """#!lua
-- KEYS[1] who counts trends. ARGV: instance, for how long (ms). Returns 1 if it is this instance now.
-- Only spares work: what is counted is guarded by WRITE_CHECKPOINT.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

WRITE_CHECKPOINT = """#!lua
-- KEYS[1] one partition's counts. ARGV: expected next offset ('' for none yet), seconds kept, then fields and values, 'n' among them.
-- Counts, next offset and the plays that are remembered move together: what is read again cannot count twice.
-- Returns '' when written, else what was found instead.
local found = redis.call('HGET', KEYS[1], 'n') or ''
if found ~= ARGV[1] then return 'found offset ' .. (found ~= '' and found or 'none') end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return ''
"""

POINT = """#!lua
-- KEYS[1] pointer to the newest snapshot, KEYS[2] who counts. ARGV: instance, value, seconds kept. Returns 1 if written.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

WRITE_DEFAULT_ROWS = """#!lua
-- KEYS[1] default rows, KEYS[2] the highest activation announced, KEYS[3] present while rows are frozen.
-- ARGV: activation, then names and rows. Returns 1 if written.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('GET', KEYS[3]) then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
"""

ALL = (
    *(WRITE_VIEWER, READ_IDENTITY, WRITE_MARKER, WRITE_RECORD, RAISE_TO),
    *(HOLD, WRITE_CHECKPOINT, POINT, WRITE_DEFAULT_ROWS),
)
