// Charts of points over an axis: lines with intervals, limits, a base line. SVG, as wide as asked for.
const EDGES = { left: 52, right: 14, top: 10, bottom: 38 };

/** Ticks of a linear axis: four or so round numbers. */
function roundTicks(low, high, count = 4) {
  const raw = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((by) => by * unit).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(Number(at.toPrecision(12)));
  return ticks;
}

/** Ticks of a logarithmic axis: as many of a decade's as leave six or so. */
function logTicks(low, high) {
  for (const subs of [[1, 1.5, 2, 3, 4, 6, 8], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const sub of subs) if (sub * 10 ** e >= low * 0.999 && sub * 10 ** e <= high * 1.001) ticks.push(sub * 10 ** e);
    }
    if (ticks.length <= 7) return ticks.map((tick) => Number(tick.toPrecision(6)));
  }
  return [low, high];
}

/** From values to pixels. `kind` is linear, log, or steps (values as ticks, evenly apart by their logarithm). */
function scale(kind, values, from, to, { zero = false, include = [] } = {}) {
  const all = [...values, ...include];
  let low = Math.min(...all);
  let high = Math.max(...all);
  if (kind === "linear") {
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    const floor = zero && low >= 0;
    low = floor ? 0 : low - pad;
    high += pad;
  } else {
    const pad = low === high ? 1.5 : (high / low) ** 0.06;
    low /= pad;
    high *= pad;
  }
  const share = kind === "linear" ? (v) => (v - low) / (high - low) : (v) => Math.log(v / low) / Math.log(high / low);
  const at = (v) => from + share(v) * (to - from);
  if (kind === "steps") return { at, ticks: distinct(values).sort((a, b) => a - b) };
  const even = roundTicks(low, high, Math.max(3, Math.abs(to - from) / 90));
  const decades = kind === "log" ? logTicks(low, high) : [];
  return { at, ticks: decades.length > 2 ? decades : even };  // a narrow logarithmic axis is nearly even
}

const joined = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/**
 * A figure with its caption.
 *
 * series: {look, points: [{x, y, low, high, xLow, xHigh, hollow, lines}], line}; limits: {look, points: [[x, y]]};
 * base: {y, words}; x and y: {label, kind, form, tick (form of a tick), zero}; stair: points of a line in steps, each
 * reached before the next begins.
 */
function plot({ title, about, width, height = 250, x, y, series, limits = [], base = null, stair = [] }) {
  const drawn = series.flatMap((one) => one.points);
  if (!drawn.length) return null;
  const ys = [...drawn.flatMap((p) => [p.y, p.low, p.high]), ...limits.flatMap((l) => l.points.map((p) => p[1]))].filter(given);
  const xs = [...drawn.flatMap((p) => [p.x, p.xLow, p.xHigh]), ...limits.flatMap((l) => l.points.map((p) => p[0]))].filter(given);
  const right = width - EDGES.right;
  const bottom = height - EDGES.bottom;
  const across = scale(x.kind, xs, EDGES.left + 6, right - 6, x);
  const up = scale(y.kind, ys, bottom, EDGES.top, { ...y, include: base ? [base.y] : [] });
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.setAttribute("aria-label", describe(title, about, x, y, series));

  for (const tick of up.ticks) {
    chart.append(svg("path", { class: "rule", d: `M${EDGES.left} ${up.at(tick).toFixed(1)}H${right}` }),
      svg("text", { class: "soft", x: EDGES.left - 6, y: up.at(tick) + 4, "text-anchor": "end" }, (y.tick || y.form)(tick)));
  }
  let last = Infinity;
  for (const tick of [...across.ticks].reverse()) {  // the largest is named, then what has room to its left
    chart.append(svg("path", { class: "edge", d: `M${across.at(tick).toFixed(1)} ${bottom}v4` }));
    if (last - across.at(tick) < 34) continue;
    last = across.at(tick);
    chart.append(svg("text", { class: "soft", x: last, y: bottom + 16, "text-anchor": "middle" }, x.form(tick)));
  }
  chart.append(svg("path", { class: "edge", d: `M${EDGES.left} ${EDGES.top}V${bottom}H${right}` }),
    svg("text", { class: "soft", x: (EDGES.left + right) / 2, y: height - 4, "text-anchor": "middle" }, x.label));
  if (base) chart.append(svg("path", { class: "base", d: `M${EDGES.left} ${up.at(base.y).toFixed(1)}H${right}` }));
  if (stair.length > 1) {
    const steps = stair.flatMap(([px, py], i) => (i ? [[stair[i - 1][0], py], [px, py]] : [[px, py]]));
    chart.append(svg("path", { class: "front", d: joined(steps.map(([px, py]) => [across.at(px), up.at(py)])) }));
  }
  for (const { look, points } of limits) {
    const path = joined(points.map(([px, py]) => [across.at(px), up.at(py)]));
    chart.append(svg("path", { class: "own limit", css: colours(look), d: path }));
  }
  const spots = [];
  for (const { look, points, line = true } of series) {
    const css = colours(look);
    const at = points.map((p) => [across.at(p.x), up.at(p.y)]);
    if (line && points.length > 1) {
      chart.append(svg("path", { class: "own path", css, d: joined(at), "stroke-dasharray": dashes(look) }));
    }
    points.forEach((p, i) => {
      const [px, py] = at[i];
      chart.append(whiskers(px, py, p, across, up, css), marker(look, px, py, { hollow: p.hollow }));
      spots.push({ x: px, y: py, lines: p.lines });
    });
  }
  if (base) {
    chart.append(svg("text", { class: "soft halo", x: right, y: up.at(base.y) - 4, "text-anchor": "end" }, base.words));
  }
  explore(chart, spots);
  return el("figure", {}, el("figcaption", {}, title, about ? el("small", { class: "soft" }, about) : null), chart);
}

/** The interval of a point, where it is wider than its marker would hide. */
function whiskers(px, py, point, across, up, css) {
  const parts = [];
  if (given(point.low) && given(point.high)) {
    const [top, low] = [up.at(point.high), up.at(point.low)];
    parts.push(svg("path", { class: "own whisker", css, d: `M${px - 3} ${top}h6M${px} ${top}V${low}M${px - 3} ${low}h6` }));
  }
  if (given(point.xLow) && given(point.xHigh)) {
    const [left, right] = [across.at(point.xLow), across.at(point.xHigh)];
    parts.push(svg("path", { class: "own whisker", css, d: `M${left} ${py - 3}v6M${left} ${py}H${right}M${right} ${py - 3}v6` }));
  }
  return parts.length ? svg("g", {}, parts) : "";
}

/** What a chart shows, for who does not see it. */
function describe(title, about, x, y, series) {
  const ends = series.filter((one) => one.points.length).map((one) => {
    const last = one.points[one.points.length - 1];
    return `${one.name}: ${y.form(last.y)} at ${x.form(last.x)}`;
  });
  const what = `${y.label} over ${x.label}`;
  return `Chart. ${title}. ${about || ""} ${what}. ${ends.join("; ")}. Arrow keys go from point to point.`;
}

/** A legend whose entries switch what is drawn: those shown at first, and the others in a list that opens. */
function switches(name, entries, isFirst, isOn, flip) {
  const button = (entry) => el("button", {
    type: "button", "data-key": `${name}|${entry.key}`, "aria-pressed": String(isOn(entry.key)), on: { click: () => flip(entry.key) },
  }, swatch(entry.look), entry.name);
  const group = (some) => el("div", { class: "legend", role: "group", "aria-label": `Lines of ${name}` }, some.map(button));
  const others = entries.filter((entry) => !isFirst(entry.key));
  const on = others.filter((entry) => isOn(entry.key)).length;
  const more = others.length ? el("details", { class: "more", "data-key": name },
    el("summary", {}, `${counted(others.length, "more line")}${on ? `, ${on} shown` : ""}`), group(others)) : null;
  return [group(entries.filter((entry) => isFirst(entry.key))), more];
}

/** Values side by side where there is a single context: a lane a line, its name above its marker. */
function lanes({ title, about, width, y, series, base = null }) {
  const drawn = series.flatMap((one) => one.points.map((point) => ({ ...point, name: one.name, look: one.look })));
  if (!drawn.length) return null;
  drawn.sort((a, b) => b.y - a.y);
  const height = drawn.length * 32 + 40;
  const ends = drawn.flatMap((p) => [p.y, p.low, p.high]).filter(given);
  const across = scale(y.kind, ends, 8, width - 12, { ...y, include: base ? [base.y] : [] });
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const foot = height - 34;
  for (const tick of across.ticks) {
    chart.append(svg("path", { class: "rule", d: `M${across.at(tick).toFixed(1)} 0V${foot}` }));
    const anchor = across.at(tick) > width - 24 ? "end" : across.at(tick) < 24 ? "start" : "middle";
    chart.append(svg("text", { class: "soft", x: across.at(tick), y: foot + 15, "text-anchor": anchor }, (y.tick || y.form)(tick)));
  }
  chart.append(svg("path", { class: "edge", d: `M0 ${foot}H${width}` }),
    svg("text", { class: "soft", x: width / 2, y: height - 4, "text-anchor": "middle" }, y.label));
  if (base) chart.append(svg("path", { class: "base", d: `M${across.at(base.y).toFixed(1)} 0V${foot}` }));
  const spots = drawn.map((p, lane) => {
    const [px, py] = [across.at(p.y), lane * 32 + 22];
    const css = colours(p.look);
    chart.append(svg("text", { class: "halo", x: 0, y: py - 9 }, `${p.name}: ${y.form(p.y)}`));
    if (given(p.low) && given(p.high)) {
      const [left, right] = [across.at(p.low), across.at(p.high)];
      chart.append(svg("path", { class: "own whisker", css, d: `M${left} ${py - 3}v6M${left} ${py}H${right}M${right} ${py - 3}v6` }));
    }
    chart.append(marker(p.look, px, py, { hollow: p.hollow }));
    return { x: px, y: py, lines: p.lines };
  });
  chart.setAttribute("aria-label", `Chart. ${title}. ${about || ""} ${y.label}: ${drawn.map((p) => `${p.name} ${y.form(p.y)}`).join("; ")}.`);
  explore(chart, spots);
  return el("figure", {}, el("figcaption", {}, title, about ? el("small", { class: "soft" }, about) : null), chart);
}

/** Columns side by side of a place as wide as the page: their number and width in pixels. */
function columnsIn(body, least = 330, gap = 24) {
  const width = body.clientWidth || 320;
  const count = Math.max(1, Math.floor((width + gap) / (least + gap)));
  return { count, width: Math.floor((width - gap * (count - 1)) / count) };
}

function gridOf(body, figures, least) {
  const { count } = columnsIn(body, least);
  return el("div", { class: "grid", css: { "grid-template-columns": `repeat(${count}, minmax(0, 1fr))` } }, figures);
}
