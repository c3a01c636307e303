// Two runs side by side: what got faster or slower, by the intervals of both.
const VERDICTS = ["slower", "faster", "unclear", "same"];
const compareView = { chosen: 0, verdict: "all", all: false };

const compared = part("compare", "Two runs side by side", null, true, (body) => {
  if (!page.comparisons.length) {
    body.append(el("p", {}, "These files hold no two runs of the same measurements. Give the files of both: ",
      el("code", {}, "resa-bench report FIRST SECOND -o report.html"), "."));
    return;
  }
  const entry = page.comparisons[compareView.chosen] || page.comparisons[0];
  const set = (changes) => { Object.assign(compareView, changes); compared.redraw(); };
  const label = (number) => page.runs[number].label;
  const deciding = new Set(entry.deciding);
  const pairs = entry.pairs.map(([a, b, verdict, by]) => ({ a: rows[a], b: rows[b], verdict: VERDICTS[verdict], by, decides: deciding.has(a) }))
    .filter((pair) => matches({ ...pair.a, run: null }, "run"));
  const kept = pairs.filter((pair) => compareView.all || pair.decides);
  body.append(el("div", { class: "controls" },
    picker("Runs", page.comparisons.map((one, i) => [i, `A ${label(one.a)}, B ${label(one.b)}`]), compareView.chosen, (i) => set({ chosen: Number(i) })),
    picker("Verdict", [["all", "all"], ...VERDICTS.map((word) => [word, word.toUpperCase()])], compareView.verdict, (word) => set({ verdict: word })),
    ticker("stages and eager rows too", compareView.all, (on) => set({ all: on }))));
  body.append(el("p", {}, overall(entry, kept)));
  if (!entry.same_device) body.append(el("p", { class: "bad" }, `The devices differ: A ran on ${page.runs[entry.a].device.join(", ") || "an unknown one"}, B on ${page.runs[entry.b].device.join(", ") || "an unknown one"}.`));
  body.append(el("div", { class: "tiles" }, VERDICTS.map((word) => el("div", { class: "card" },
    el("div", { class: `verdict ${word}` }, word.toUpperCase()), el("div", { class: "big" }, String(kept.filter((pair) => pair.verdict === word).length))))));
  if (kept.length) body.append(ratioStrip(kept, columnsIn(body, 900).width));
  const listed = kept.filter((pair) => compareView.verdict === "all" || pair.verdict === compareView.verdict);
  listed.sort((x, y) => VERDICTS.indexOf(x.verdict) - VERDICTS.indexOf(y.verdict) || Math.abs(y.by - 1) - Math.abs(x.by - 1));
  body.append(sortTable(`B against A, tolerance ${percent(entry.tolerance)}`, [
    { title: "Case", of: (pair) => page.cases[pair.a.case] },
    { title: "Method", of: (pair) => variantOf(pair.a).name },
    { title: "Stage", of: (pair) => stageOf(pair.a).name },
    { title: "Verdict", of: (pair) => pair.verdict.toUpperCase(), look: (pair) => `verdict ${pair.verdict}`,
      cell: (pair) => [pair.verdict.toUpperCase(), pair.a.throttled || pair.b.throttled ? " (throttled)" : ""] },
    { title: "B / A", number: true, of: (pair) => pair.by, cell: (pair) => pair.by.toFixed(3) },
    { title: "A", number: true, of: (pair) => pair.a.time, cell: (pair) => withRange(time(pair.a.time), pair.a.low, pair.a.high, time) },
    { title: "B", number: true, of: (pair) => pair.b.time, cell: (pair) => withRange(time(pair.b.time), pair.b.low, pair.b.high, time) },
    { title: "Launch, cache", of: (pair) => page.ways[pair.a.way] },
  ], listed, { size: 40 }));
  for (const [name, method, stage, reason] of entry.failed) {
    body.append(el("p", { class: "failed" }, `newly failed: ${name} ${method} ${stage}: ${reason}`));
  }
});

function overall(entry, kept) {
  const tellings = { 0: "No whole step got slower and nothing newly failed", 1: "A whole step got slower, or something newly failed", 2: "Nothing was comparable" };
  const sorted = kept.map((pair) => pair.by).sort((a, b) => a - b);
  const middle = sorted.length ? `; median B / A ${sorted[Math.floor(sorted.length / 2)].toFixed(4)} of ${counted(kept.length, "row")}` : "";
  const rest = entry.only_a || entry.only_b ? `. Only in A: ${counted(entry.only_a, "timed row")}; only in B: ${entry.only_b}` : "";
  return `${tellings[entry.exit_code]}${middle}${rest}. SAME: within the tolerance, both intervals narrow; UNCLEAR: the intervals cannot tell.`;
}

/** Each row's ratio, a lane a verdict. */
function ratioStrip(pairs, width) {
  const lanes = VERDICTS.filter((word) => pairs.some((pair) => pair.verdict === word));
  const height = lanes.length * 34 + 44;
  const left = 76;
  const across = scale("log", pairs.map((pair) => pair.by), left + 8, width - 12, { include: [1] });
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const foot = height - 36;
  chart.append(svg("path", { class: "edge", d: `M${left} ${foot}H${width - 4}` }), svg("path", { class: "base", d: `M${across.at(1)} 0V${foot}` }),
    svg("text", { class: "soft", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "B / A (right: B takes longer)"));
  let last = -Infinity;
  for (const tick of distinct([...across.ticks, 1]).sort((a, b) => a - b)) {
    if (across.at(tick) - last < 42) continue;
    last = across.at(tick);
    chart.append(svg("text", { class: "soft", x: last, y: foot + 15, "text-anchor": "middle" }, String(tick)));
  }
  const spots = [];
  lanes.forEach((word, lane) => {
    const y = lane * 34 + 17;
    chart.append(svg("text", { x: 0, y: y + 4 }, word.toUpperCase()));
    pairs.filter((pair) => pair.verdict === word).sort((a, b) => a.by - b.by).forEach((pair, i) => {
      const [x, own] = [across.at(pair.by), y + ((i % 5) - 2) * 4];
      chart.append(marker(variantOf(pair.a), x, own, { radius: 3, hollow: Boolean(pair.a.throttled || pair.b.throttled) }));
      spots.push({ x, y: own, lines: [`${variantOf(pair.a).name}, ${page.cases[pair.a.case]}`, `${stageOf(pair.a).name}: ${time(pair.a.time)}, then ${time(pair.b.time)}`, `B / A ${pair.by.toFixed(3)}: ${word.toUpperCase()}`] });
    });
  });
  const counts = lanes.map((word) => `${word} ${pairs.filter((pair) => pair.verdict === word).length}`).join(", ");
  chart.setAttribute("aria-label", `Ratios of B to A by verdict: ${counts}. Arrow keys go from row to row.`);
  explore(chart, spots);
  return el("figure", {}, el("figcaption", {}, "Every ratio by verdict"), chart);
}
