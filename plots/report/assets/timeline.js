// A traced step, kernel by kernel: a lane a stage, from one moment to another.
const traceView = { chosen: 0, pass: 0, zoom: 1, from: 0 };
const ROW = 22;
const ZOOMS = [1, 2, 4, 8, 16, 32];

const STAGE_LOOKS = new Map(page.stages.map((stage) => [stage.name, stage]));

const traces = part("timeline", "Timeline of a traced step",
  "Kernels of one step as a profiler recorded them. Tracing takes time: the untraced step is named beside it.", page.timelines.length > 0, (body) => {
    const all = page.timelines;
    const trace = all[traceView.chosen] || all[0];
    const pass = trace.passes[traceView.pass] || trace.passes[0];
    const end = Math.max(...pass.bars.map((bar) => bar[3]));
    const length = end / traceView.zoom;
    const from = Math.min(traceView.from, end - length);
    const set = (changes) => { Object.assign(traceView, changes); traces.redraw(); };
    const name = (one) => `${one.folder}: ${one.label}, ${one.case}`;
    const slider = el("input", {
      type: "range", min: 0, max: Math.max(0, end - length), step: end / 200, value: from, disabled: traceView.zoom === 1,
      on: { input: (event) => { traceView.from = Number(event.target.value); redrawLanes(); } },
    });
    const lanes = el("div");
    const width = columnsIn(body, 900).width;
    const redrawLanes = () => lanes.replaceChildren(laneChart(trace, pass, Math.min(traceView.from, end - length), length, width));
    body.append(el("div", { class: "controls" },
      picker("Trace", all.map((one, i) => [i, name(one)]), traceView.chosen, (i) => set({ chosen: Number(i), pass: 0, zoom: 1, from: 0 })),
      picker("Pass", trace.passes.map((one, i) => [i, one.kind]), traceView.pass, (i) => set({ pass: Number(i), from: 0 })),
      picker("Zoom", ZOOMS.map((by) => [by, `${by}${TIMES}`]), traceView.zoom, (by) => set({ zoom: Number(by) })),
      el("label", { class: "pick" }, "From", slider)), lanes,
    el("p", { class: "soft" }, [trace.device, trace.commit ? `commit ${trace.commit}` : "", trace.source,
      given(trace.untraced_us) ? `untraced step ${time(trace.untraced_us)}` : ""].filter(Boolean).join(", ")));
    redrawLanes();
  });

function laneChart(trace, pass, from, length, width) {
  const height = pass.stages.length * ROW + 30;
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const left = Math.min(150, width * 0.3);
  const at = (us) => left + ((us - from) / length) * (width - left - 4);
  const totals = pass.stages.map(() => 0);
  pass.stages.forEach((stage, lane) => {
    chart.append(svg("path", { class: "rule", d: `M${left} ${(lane + 1) * ROW}H${width}` }),
      svg("text", { x: 0, y: lane * ROW + 15 }, (STAGE_LOOKS.get(stage) || { shown: stage }).shown));
  });
  const spots = [];
  let turn = 0;
  for (const [stage, kernel, start, stop] of [...pass.bars].sort((a, b) => a[2] - b[2])) {
    const own = Math.max(start, turn);  // a kernel that was let in early waits for its turn
    turn = Math.max(turn, stop);
    totals[stage] += stop - own;
    if (stop < from || start > from + length) continue;
    const [x0, x1] = [Math.max(left, at(own)), Math.min(width - 4, at(stop))];
    const y = stage * ROW + 3;
    const wide = Math.max(x1 - x0, 0.8);  // never so thin that it vanishes
    const fill = laneFill(pass.stages[stage]);
    if (at(start) < x0) chart.append(svg("rect", { x: Math.max(left, at(start)), y: y + 6, width: Math.max(0, x0 - Math.max(left, at(start))), height: 4, fill, opacity: 0.5 }));
    chart.append(svg("rect", { x: x0.toFixed(1), y, width: wide.toFixed(1), height: ROW - 6, fill }));
    spots.push({ x: x0 + wide / 2, y: y + 8, left: x0 - 1, right: x0 + wide + 1, top: y, lines: [trace.kernels[kernel], `${pass.stages[stage]}: ${time(stop - start)}`, `from ${time(start) || "0"}`] });
  }
  for (const tick of roundTicks(from, from + length, Math.max(2, width / 160))) {
    if (tick < from || tick > from + length) continue;
    const edge = at(tick) > width - 40 ? "end" : "middle";
    chart.append(svg("text", { class: "soft", x: at(tick), y: height - 8, "text-anchor": edge }, shortTime(tick)));
  }
  const said = pass.stages.map((stage, i) => `${stage} ${time(totals[i])}`).join(", ");
  chart.setAttribute("aria-label", `Timeline of a ${pass.kind}, ${trace.label}. ${said}. Arrow keys go from kernel to kernel.`);
  explore(chart, spots, (x, y) => spots.findIndex((spot) => x >= spot.left && x <= spot.right && y >= spot.top && y <= spot.top + ROW));
  const launch = pass.graph ? "replayed" : "launched from Python";
  return el("figure", {}, el("figcaption", {}, `One ${pass.kind}, ${launch}: ${trace.label}, ${trace.case}`), chart);
}

/** A lane's colour: of several stages in one the last one's, as in the figure. */
function laneFill(stage) {
  const look = STAGE_LOOKS.get(stage.split("+").pop()) || STAGE_LOOKS.get(stage);
  return look ? look.fill : "#999999";
}
