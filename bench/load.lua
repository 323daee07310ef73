-- wrk: GET PREFIX + a random number below COUNT, PAUSE ms after the last page; one line of JSON at the end.
-- Arguments behind `--`: PREFIX COUNT PAUSE
local prefix, count, pause

function init(arguments)
  prefix, count, pause = arguments[1], tonumber(arguments[2]), tonumber(arguments[3])
  if pause > 0 then
    delay = function() return pause end
  end
  math.randomseed(os.time())
end

function request()
  return wrk.format("GET", prefix .. math.random(0, count - 1))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
