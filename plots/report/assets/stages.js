// Where the time of a step goes: a bar a method, its stages one after another.
const stageView = { chosen: null };
const BAR = 20;
const LANE = 46;

const stages = part(
  "stages",
  "Time by stage",
  null,
  rows.some((row) => row.bar === 1),
  (body) => {
    const bars = chosenRows().filter((row) => row.bar === 1);
    if (!bars.length) {
      body.append(el("p", {}, "No step with its stages here: was it measured with --no-breakdown, or filtered out?"));
      return;
    }
    const cases = [...groupBy(bars, (row) => `${row.run}|${row.case}|${row.way}`)];
    const rank = ([, group]) =>
      (page.suites[group[0].suite] === "decode" ? 1e9 : 0) +
      group[0].context +
      distinct(group.map((row) => row.variant)).length;
    cases.sort((a, b) => rank(b) - rank(a));
    const key = cases.some(([name]) => name === stageView.chosen) ? stageView.chosen : cases[0][0];
    const words = ([name, group]) => [name, [page.cases[group[0].case], runWords(group[0])].filter(Boolean).join(", ")];
    body.append(
      el(
        "div",
        { class: "controls" },
        picker("Case", cases.map(words), key, (value) => {
          stageView.chosen = value;
          stages.redraw();
        }),
      ),
    );
    const group = cases.find(([name]) => name === key)[1];
    const here = [...groupBy(group, (row) => row.variant)].map(([variant, own]) => barOf(variant, own));
    here.sort((a, b) => a.total - b.total);
    const used = distinct(group.map((row) => row.stage)).map((number) => page.stages[number]);
    used.sort((a, b) => comparePlaces(a.place, b.place));
    body.append(
      stageLegend(used),
      stageBars(words([key, group])[1], here, Math.min(columnsIn(body, 900).width, 1000)),
      el(
        "p",
        { class: "soft" },
        page.suites[group[0].suite] === "decode"
          ? "The stages sum to the mean step: what they leave is the gap. Rectification is a share of each step."
          : "Stages are timed apart: each contains a launch that the step overlaps, so that they sum to more.",
        " The heavy mark is the measured step, the triangle its floor.",
      ),
    );
  },
);

const comparePlaces = (a, b) => a.reduce((sign, part, i) => sign || Number(part) - Number(b[i]), 0);

function barOf(variant, own) {
  const whole = rows.find(
    (row) =>
      row.variant === variant &&
      row.run === own[0].run &&
      row.case === own[0].case &&
      row.way === own[0].way &&
      row.setting === own[0].setting &&
      stageOf(row).name === "total",
  );
  const sorted = own.sort((a, b) => comparePlaces(stageOf(a).place, stageOf(b).place));
  const total = whole ? whole.time : sorted.reduce((sum, row) => sum + row.time, 0);
  return { look: page.variants[variant], parts: sorted, whole, total };
}

function stageBars(name, bars, width) {
  const height = bars.length * LANE + 8;
  const longest = Math.max(
    ...bars.map((bar) =>
      Math.max(
        bar.total,
        bar.parts.reduce((sum, row) => sum + Math.max(row.time, 0), 0),
      ),
    ),
  );
  const at = (us) => (us / longest) * (width - 2);
  const defs = svg("defs");
  const fills = new Map(page.stages.map((stage) => [stage.name, stageFill(stage, defs)]));
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" }, defs);
  const spots = [];
  bars.forEach((bar, lane) => {
    const top = lane * LANE + 20;
    chart.append(
      svg("text", { x: 0, y: top - 6 }, bar.look.name),
      svg(
        "text",
        { class: "soft", x: width - 2, y: top - 6, "text-anchor": "end" },
        `${time(bar.total)}${bar.whole && bar.whole.throttled ? ", throttled" : ""}`,
      ),
    );
    let from = 0;
    for (const row of bar.parts) {
      const wide = Math.max(row.time, 0);
      const stage = stageOf(row);
      chart.append(
        svg("rect", {
          class: "segment",
          x: at(from).toFixed(1),
          y: top,
          width: at(wide).toFixed(1),
          height: BAR,
          fill: fills.get(stage.name),
        }),
      );
      spots.push({
        x: at(from + wide / 2),
        y: top + BAR / 2,
        left: at(from),
        right: at(from + wide),
        top,
        lines: [bar.look.name, `${stage.shown}: ${time(row.time)}`, `${percent(row.time / bar.total)} of the step`],
      });
      from += wide;
    }
    if (!bar.whole) return;
    chart.append(
      svg("path", { class: "strong", d: `M${Math.max(2, at(bar.whole.time)).toFixed(1)} ${top - 4}v${BAR + 8}` }),
    );
    if (!given(bar.whole.floor)) return;
    const x = Math.max(6, at(bar.whole.floor));
    chart.append(svg("path", { class: "floor", d: `M${x.toFixed(1)} ${top + 10}l-6 14h12Z` }));
  });
  const said = bars.map(
    (bar) =>
      `${bar.look.name} ${time(bar.total)}: ` +
      bar.parts.map((row) => `${stageOf(row).shown} ${time(row.time)}`).join(", "),
  );
  chart.setAttribute(
    "aria-label",
    `Bars of a step's stages, ${name}. ${said.join("; ")}. Arrow keys go from stage to stage.`,
  );
  explore(chart, spots, (x, y) =>
    spots.findIndex((spot) => x >= spot.left && x <= spot.right && y >= spot.top - 2 && y <= spot.top + BAR + 2),
  );
  return el("figure", {}, el("figcaption", {}, name), chart);
}
