-- wrk: GET PREFIX + a random number below COUNT; one line of JSON at the end. Arguments behind `--`: PREFIX COUNT
local prefix, count

function init(arguments)
  prefix, count = arguments[1], tonumber(arguments[2])
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
