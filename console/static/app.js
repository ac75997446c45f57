// What pages have beyond HTML. All of it only adds: without it, reload the page.
"use strict";

const LOOK_MS = 2000;
const MAX_RELATIVE_SECONDS = 2 * 86400;
const NOW_SECONDS = 5;
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });

// "3 minutes ago" for times of the last two days: in tables and captions instead of the full time, which the
// title keeps; after it in sentences and where the time has the class `full`.
const SHORT = "td, dd, caption, .as-of, footer";
function describeDistance(seconds) {
  const length = Math.abs(seconds), minutes = Math.floor(length / 60);
  if (length < NOW_SECONDS) return "just now";
  if (minutes < 1) return relative.format(Math.trunc(seconds), "second");
  if (minutes < 60) return relative.format(Math.sign(seconds) * minutes, "minute");
  const text = `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return seconds < 0 ? `${text} ago` : `in ${text}`;
}

function showRelativeTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
    if (!(Math.abs(seconds) < MAX_RELATIVE_SECONDS)) continue;
    time.title ||= time.textContent;
    const ago = describeDistance(seconds);
    const text = time.closest(SHORT) && !time.matches(".full") ? ago : `${time.title} (${ago})`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// Live parts reload on the event `look`, which comes while somebody can see the page.
function look() {
  if (document.visibilityState !== "visible") return;
  document.body.dispatchEvent(new Event("look"));
  showRelativeTimes();
}

function showStale(stale) {
  const notice = document.getElementById("stale");
  if (notice) notice.hidden = !stale;
}

document.addEventListener("htmx:after:swap", showRelativeTimes);
document.addEventListener("htmx:after:request", (event) => {
  const status = event.detail?.ctx?.response?.status ?? 0;
  if (status === 401) location.reload(); // signed out: the server asks for the password
  showStale(status >= 400);
});
document.addEventListener("htmx:error", () => showStale(true));

// A form that changes something is sent once, however often its button is pressed.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => form.querySelectorAll("button").forEach((button) => { button.disabled = true; }));
});
window.addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  }
});

// Buttons that copy the text before them; without this script they are not shown.
document.documentElement.classList.toggle("js", Boolean(navigator.clipboard));
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.previousElementSibling.textContent);
  button.textContent = "Copied";
});

showRelativeTimes();
setInterval(look, LOOK_MS);
document.addEventListener("visibilitychange", look);
