// Numbers as people read them. A missing number is an empty string.
const MICRO = "\u00b5s";
const TIMES = "\u00d7";
const DASH = "\u2013";
const given = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** To three significant digits, thousands with a separator. */
function short(value, digits = 3) {
  if (!given(value)) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-4) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

/** 262144 is 256K. */
function tokens(context) {
  for (const [unit, name] of [[1 << 20, "M"], [1 << 10, "K"]]) {
    if (context >= unit) return Number((context / unit).toPrecision(4)) + name;
  }
  return String(context);
}

function time(us) {
  if (!given(us)) return "";
  if (us >= 1e6) return `${(us / 1e6).toPrecision(4)} s`;
  return us >= 1e3 ? `${(us / 1e3).toPrecision(4)} ms` : `${us.toPrecision(us >= 1 ? 4 : 2)} ${MICRO}`;
}

/** Of an axis: no digit too many. */
function shortTime(us) {
  if (us === 0) return "0";
  if (us >= 1e6) return `${short(us / 1e6)} s`;
  return us >= 1e3 ? `${short(us / 1e3)} ms` : `${short(us)} ${MICRO}`;
}

const shortRatio = (value) => `${short(value)}${TIMES}`;
const ratio = (value) => (given(value) ? `${value.toFixed(2)}${TIMES}` : "");
const percent = (value, places = 1) => (given(value) ? `${(100 * value).toFixed(places)} %` : "");
const gigabytes = (bytes) => (given(bytes) ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : "");

/** `1.82 to 1.84`, in a form; empty without both ends. */
const range = (low, high, form) => (given(low) && given(high) ? `${form(low)} to ${form(high)}` : "");

const counted = (count, what) => `${count.toLocaleString("en-US")} ${what}${count === 1 ? "" : "s"}`;
