-- Sends the signed deliveries of a file, one a line: signature, blank, body. Counts what is not answered 200, and
-- stops when all are answered, if it is told to send them `once`. With a number of milliseconds, each connection rests
-- for so long on average before it sends the next.
local deliveries, sent, answered, once, threads = {}, 0, 0, false, {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  refused = 0
  once = arguments[2] == "once"
  local pause = tonumber(arguments[2])
  if pause then
    function delay() return math.random() * 2 * pause end
  end
  for line in io.lines(arguments[1]) do
    local signature, body = line:match("^(%S+) (.*)$")
    local headers = { ["Stripe-Signature"] = signature, ["Content-Type"] = "application/json; charset=utf-8" }
    deliveries[#deliveries + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  sent = sent + 1
  return deliveries[(sent - 1) % #deliveries + 1]
end

function response(status)
  if status ~= 200 then refused = refused + 1 end
  answered = answered + 1
  if once and answered >= #deliveries then wrk.thread:stop() end
end

function done(summary, latency)
  local refusals = 0
  for _, thread in ipairs(threads) do refusals = refusals + thread:get("refused") end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\n{"requests": %d, "seconds": %f, "refused": %d, "errors": %d, "p50": %f, "p99": %f, "max": %f}\n',
    summary.requests, summary.duration / 1e6, refusals, errors,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
