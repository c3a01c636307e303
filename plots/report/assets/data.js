// The payload, unpacked: rows as objects, and what is chosen of them.
const page = JSON.parse(byId("data").textContent);

const SUITE_TITLES = { decode: "Whole model (decode)", micro: "Kernels of one layer (micro)" };
const suiteTitle = (suite) => SUITE_TITLES[page.suites[suite]] || page.suites[suite];

function unpack(columns) {
  const names = Object.keys(columns);
  if (!names.length) return [];
  const count = columns.run.split(",").length;
  const lists = names.map((name) => columns[name].split(","));
  return Array.from({ length: count }, (_, id) => {
    const row = { id };
    names.forEach((name, i) => { row[name] = lists[i][id] === "" ? null : Number(lists[i][id]); });
    return place(row);
  });
}

/** Adds what filters look at. */
function place(record) {
  record.model = page.settings[record.setting].model;
  record.method = page.variants[record.variant].method;
  return record;
}

const rows = unpack(page.rows);
const values = page.values.map(place);
const untimed = page.untimed.map(place);

/** What a page can be filtered by: a name, a heading, and the words of a value. */
const DIMENSIONS = [
  { name: "run", title: "Run", words: (value) => page.runs[value].label },
  { name: "suite", title: "Suite", words: (value) => page.suites[value] },
  { name: "model", title: "Model", words: (value) => value },
  { name: "case", title: "Case", words: (value) => page.cases[value] },
  { name: "method", title: "Method", words: (value) => page.methods[value] },
  { name: "context", title: "Context", words: tokens },
  { name: "batch", title: "Batch", words: String },
];

/** Chosen values by dimension (none chosen: all), and the way of launching: "usual", or its number. */
const chosen = { way: "usual" };
for (const { name } of DIMENSIONS) chosen[name] = new Set();

const matches = (record, except = null) =>
  DIMENSIONS.every(({ name }) => name === except || !chosen[name].size || chosen[name].has(record[name]));

const ofWay = (row) => (chosen.way === "usual" ? row.usual === 1 : row.way === Number(chosen.way));

const chosenRows = () => rows.filter((row) => matches(row) && ofWay(row));
const variantOf = (record) => page.variants[record.variant];
const stageOf = (record) => page.stages[record.stage];
const runWords = (record) => (page.runs.length > 1 ? page.runs[record.run].label : "");

/** Setting and batch of a row, in words; of which run, where there are several. */
function circumstances(row) {
  const { model, words } = page.settings[row.setting];
  return [model, `batch ${row.batch}`, words, runWords(row)].filter(Boolean).join(", ");
}
