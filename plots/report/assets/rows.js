// All rows behind the page, as a table that sorts; and what was skipped or failed.
const rowView = { stages: false };

const table = part("rows", "All rows", null, rows.length > 0, (body) => {
  const kept = chosenRows().filter((row) => rowView.stages || given(row.whole));
  body.append(el("div", { class: "controls" }, ticker("single stages too", rowView.stages, (on) => { rowView.stages = on; table.redraw(); })));
  if (!kept.length) {
    body.append(el("p", {}, "No timed row here. Choose other filters."));
    return;
  }
  const number = (title, name, form) => (kept.some((row) => given(row[name]))
    ? { title, number: true, of: (row) => row[name], cell: (row) => form(row[name]) } : null);
  const several = (title, of) => (distinct(kept.map(of)).length > 1 ? { title, of } : null);
  body.append(sortTable("Timed rows", [
    { title: "Method", of: (row) => variantOf(row).name, cell: (row) => [variantOf(row).name, noted(row)] },
    { title: "Case", of: (row) => page.cases[row.case] },
    several("Stage", (row) => stageOf(row).name),
    several("Suite", (row) => page.suites[row.suite]),
    several("Run", runWords),
    { title: "Context", number: true, of: (row) => row.context, cell: (row) => tokens(row.context) },
    { title: "Batch", number: true, of: (row) => row.batch },
    { title: "Time", number: true, of: (row) => row.time, cell: (row) => withRange(time(row.time), row.low, row.high, time) },
    { title: "Speed-up", number: true, of: (row) => row.ratio, cell: (row) => withRange(ratio(row.ratio), row.least, row.most, ratio) },
    number("Floor", "floor", time), number("Share of floor", "share", percent), number("Floor allows", "allows", ratio),
    number("Tokens/s", "rate", (value) => short(value, 4)), number("J/token", "joules", short),
    number("Peak memory", "memory", gigabytes), number("Samples", "samples", short),
    several("Launch, cache", (row) => page.ways[row.way]),
  ].filter(Boolean), kept, { sort: null, tall: true }));
});

const missing = part("missing", "Skipped and failed", null, untimed.length > 0, (body) => {
  const kept = untimed.filter((entry) => matches({ ...entry, case: null }, "case"));
  body.append(sortTable("What has no number, and why", [
    { title: "Method", of: (entry) => variantOf(entry).name },
    { title: "Status", of: (entry) => entry.status, look: (entry) => entry.status },
    { title: "Reason", of: (entry) => entry.reason, wrap: true },
    { title: "Cases", number: true, of: (entry) => entry.cases },
    { title: "Suite", of: (entry) => page.suites[entry.suite] },
    page.runs.length > 1 ? { title: "Run", of: runWords } : null,
  ].filter(Boolean), kept));
});
