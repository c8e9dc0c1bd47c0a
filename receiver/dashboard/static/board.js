"use strict";
(() => {
  const PACE = 3000, CLOCK = 10000, CHART = { 60: 10000, 1440: 60000 };
  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const stale = document.getElementById("stale");
  let heard = Date.now();

  // One beat for whatever polls, and none while nobody looks.
  setInterval(() => {
    if (!document.hidden) document.body.dispatchEvent(new Event("tick"));
  }, PACE);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) document.body.dispatchEvent(new Event("tick"));
  });

  function span(seconds) {
    const [size, unit] = UNITS.find(([size]) => seconds >= size) || UNITS[3];
    return `${Math.floor(seconds / size)} ${unit}`;
  }
  function tellTimes() {
    for (const one of document.querySelectorAll("time[data-relative]")) {
      const away = (Date.parse(one.dateTime) - Date.now()) / 1000;
      const text = Math.abs(away) < 1 ? "now" : away > 0 ? `in ${span(away)}` : `${span(-away)} ago`;
      if (one.textContent !== text) one.textContent = text;
    }
  }
  setInterval(tellTimes, CLOCK);

  function note(trouble) {
    if (!trouble) heard = Date.now();
    stale.hidden = !trouble;
    stale.textContent = trouble ? `Not live: no news for ${span((Date.now() - heard) / 1000)}` : "";
  }
  const body = document.body;
  body.addEventListener("htmx:sendError", () => note(true));
  body.addEventListener("htmx:timeout", () => note(true));
  body.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) note(false);
  });
  body.addEventListener("htmx:beforeSwap", (event) => {
    const status = event.detail.xhr.status;
    if (status === 401) return location.reload();
    const posted = event.detail.requestConfig.verb === "post";
    // A refused action says why where it was asked for; a poll that fails leaves what is shown.
    if (status >= 400 && posted) event.detail.shouldSwap = true;
    else if (status >= 400) note(true);
  });
  body.addEventListener("htmx:afterSwap", tellTimes);

  // A second click must not send a form again.
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    for (const button of event.target.querySelectorAll("button")) setTimeout(() => (button.disabled = true));
  });
  window.addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("form:not(.choice) button")) button.disabled = false;
  });

  // Keys: in the queue they belong to the event that has the focus.
  const items = () => [...document.querySelectorAll(".item")];
  function go(step) {
    const all = items(), at = all.indexOf(document.activeElement.closest(".item"));
    const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
    if (next) next.focus();
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/" && document.getElementById("find")) {
      event.preventDefault();
      return document.getElementById("find").focus();
    }
    if (!items().length) return;
    // A key that is held down decides once: the focus has gone on to an event that nobody has read.
    if (event.repeat && event.key !== "j" && event.key !== "k") return;
    if (event.key === "j" || event.key === "k") return go(event.key === "j" ? 1 : -1);
    const item = document.activeElement.closest(".item");
    if (!item) return;
    if (event.key === "o") return location.assign(item.dataset.open);
    const button = item.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
    if (button && !button.disabled) button.click();
  });
  body.addEventListener("htmx:afterSwap", (event) => {
    const item = event.detail.target.closest(".item");
    if (!item) return;
    item.removeAttribute("aria-labelledby");
    const left = items().filter((one) => !one.querySelector("[data-settled]"));
    const next = left.find((one) => item.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING);
    (next || item).focus();
  });

  // The chart.
  const place = document.getElementById("chart");
  if (!place) return;
  const words = document.getElementById("chart-words");
  const NAMES = ["accepted", "duplicates", "done"];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const two = (number) => String(number).padStart(2, "0");
  let chart = null, last = null;

  function draw(told) {
    last = told;
    const start = Date.parse(told.from) / 1000;
    // The minute under way would end every line in a fall; the words below count it.
    const data = [told.accepted.map((_, at) => start + at * 60), ...NAMES.map((name) => told[name])].map((row) => row.slice(0, -1));
    const sums = NAMES.map((name) => told[name].reduce((sum, one) => sum + one, 0));
    const long = told.minutes > 60 ? "In the last day" : "In the last hour";
    words.textContent = `${long}: ${NAMES.map((name, at) => `${sums[at].toLocaleString("en")} ${name}`).join(", ")}.`;
    place.setAttribute("aria-label", `Chart by minute. ${words.textContent}`);
    if (chart) return chart.setData(data);
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `12px ${getComputedStyle(body).fontFamily}` };
    chart = new uPlot({
      width: place.clientWidth, height: place.clientHeight, legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] } },
      axes: [
        { ...axis, size: 26, gap: 8, values: (_, ticks) => ticks.map((at) => `${two(new Date(at * 1000).getUTCHours())}:${two(new Date(at * 1000).getUTCMinutes())}`), space: 70 },
        { ...axis, size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] },
      ],
      series: [{}, ...NAMES.map((name) => ({ label: name, stroke: colour(`--series-${name}`), width: 1.75, points: { show: false } }))],
    }, data, place);
  }
  function redraw() {
    if (!chart) return;
    chart.destroy();
    chart = null;
    draw(last);
  }
  async function load() {
    if (document.hidden) return;
    try {
      const answer = await fetch(place.dataset.series, { headers: { Accept: "application/json" } });
      if (answer.status === 401) return location.reload();
      if (answer.ok) draw(await answer.json());
    } catch {
      note(true);
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => chart && chart.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
  load();
  setInterval(load, CHART[new URL(place.dataset.series, location).searchParams.get("minutes")] || CLOCK);
})();
