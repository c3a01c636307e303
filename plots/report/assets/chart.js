// Charts of points over an axis: lines with intervals, limits, a base line. SVG, as wide as asked for.
const EDGES = { left: 52, right: 14, top: 10, bottom: 38 };

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
  const ys = [
    ...drawn.flatMap((p) => [p.y, p.low, p.high]),
    ...limits.flatMap((l) => l.points.map((p) => p[1])),
  ].filter(given);
  const xs = [
    ...drawn.flatMap((p) => [p.x, p.xLow, p.xHigh]),
    ...limits.flatMap((l) => l.points.map((p) => p[0])),
  ].filter(given);
  const right = width - EDGES.right;
  const bottom = height - EDGES.bottom;
  const across = scale(x.kind, xs, EDGES.left + 6, right - 6, x);
  const up = scale(y.kind, ys, bottom, EDGES.top, { ...y, include: base ? [base.y] : [] });
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.setAttribute("aria-label", describe(title, about, x, y, series));

  for (const tick of up.ticks) {
    chart.append(
      svg("path", { class: "rule", d: `M${EDGES.left} ${up.at(tick).toFixed(1)}H${right}` }),
      svg(
        "text",
        { class: "soft", x: EDGES.left - 6, y: up.at(tick) + 4, "text-anchor": "end" },
        (y.tick || y.form)(tick),
      ),
    );
  }
  let last = Infinity;
  for (const tick of [...across.ticks].reverse()) {
    // the largest is named, then what has room to its left
    chart.append(svg("path", { class: "edge", d: `M${across.at(tick).toFixed(1)} ${bottom}v4` }));
    if (last - across.at(tick) < 34) continue;
    last = across.at(tick);
    chart.append(svg("text", { class: "soft", x: last, y: bottom + 16, "text-anchor": "middle" }, x.form(tick)));
  }
  chart.append(
    svg("path", { class: "edge", d: `M${EDGES.left} ${EDGES.top}V${bottom}H${right}` }),
    svg("text", { class: "soft", x: (EDGES.left + right) / 2, y: height - 4, "text-anchor": "middle" }, x.label),
  );
  if (base) chart.append(svg("path", { class: "base", d: `M${EDGES.left} ${up.at(base.y).toFixed(1)}H${right}` }));
  if (stair.length > 1) {
    const steps = stair.flatMap(([px, py], i) =>
      i
        ? [
            [stair[i - 1][0], py],
            [px, py],
          ]
        : [[px, py]],
    );
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
  if (base) chart.append(baseLabel(base.words, up.at(base.y), right, [...series, ...stairAs(stair)], across, up));
  explore(chart, spots);
  return el("figure", {}, el("figcaption", {}, title, about ? el("small", { class: "soft" }, about) : null), chart);
}

const stairAs = (stair) => (stair.length ? [{ points: stair.map(([x, y]) => ({ x, y })) }] : []);

/** The base line's words: above or below it, left or right, wherever the fewest lines pass. */
function baseLabel(words, y, right, series, across, up) {
  const wide = words.length * 6.4;
  const places = [
    [right, -4, "end"],
    [right, 14, "end"],
    [EDGES.left + 5, -4, "start"],
    [EDGES.left + 5, 14, "start"],
  ];
  const passed = series.flatMap(({ points }) =>
    points.flatMap((p, i) => {
      const before = points[Math.max(0, i - 1)];
      const [x0, y0, x1, y1] = [across.at(before.x), up.at(before.y), across.at(p.x), up.at(p.y)];
      return Array.from({ length: 24 }, (_, step) => [x0 + ((x1 - x0) * step) / 23, y0 + ((y1 - y0) * step) / 23]);
    }),
  );
  const hits = ([x, lower, anchor]) =>
    passed.filter(
      ([px, py]) =>
        (anchor === "end" ? px > x - wide && px <= x + 6 : px >= x && px < x + wide) &&
        py < y + lower + 6 &&
        py > y + lower - 14,
    ).length;
  const [x, lower, anchor] = most(places, (place) => -hits(place));
  return svg("text", { class: "soft halo", x, y: y + lower, "text-anchor": anchor }, words);
}

/** The interval of a point, where it is wider than its marker would hide. */
function whiskers(px, py, point, across, up, css) {
  const parts = [];
  if (given(point.low) && given(point.high)) {
    const [top, low] = [up.at(point.high), up.at(point.low)];
    parts.push(
      svg("path", { class: "own whisker", css, d: `M${px - 3} ${top}h6M${px} ${top}V${low}M${px - 3} ${low}h6` }),
    );
  }
  if (given(point.xLow) && given(point.xHigh)) {
    const [left, right] = [across.at(point.xLow), across.at(point.xHigh)];
    parts.push(
      svg("path", { class: "own whisker", css, d: `M${left} ${py - 3}v6M${left} ${py}H${right}M${right} ${py - 3}v6` }),
    );
  }
  return parts.length ? svg("g", {}, parts) : "";
}

/** What a chart shows, for who does not see it. */
function describe(title, about, x, y, series) {
  const ends = series
    .filter((one) => one.points.length)
    .map((one) => {
      const last = one.points[one.points.length - 1];
      return `${one.name}: ${y.form(last.y)} at ${x.form(last.x)}`;
    });
  const what = `${y.label} over ${x.label}`;
  return `Chart. ${title}. ${about || ""} ${what}. ${ends.join("; ")}. Arrow keys go from point to point.`;
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
