// What the network's pages have beyond HTML and the console's script.
"use strict";

// Views: a card counts as seen when half of it, or of the screen, was visible for a moment.
const SEEN_MS = 600, SEND_MS = 400;
const timers = new Map(), noted = new Set(), waiting = new Set();
let sending = null;

function noteSeen(card) {
  const post = card.dataset.post;
  if (noted.has(post)) return;
  noted.add(post);
  waiting.add(post);
  sending ??= setTimeout(sendSeen, SEND_MS);
}

async function sendSeen() {
  clearTimeout(sending);
  sending = null;
  const posts = [...waiting];
  if (!posts.length) return;
  waiting.clear();
  const body = new URLSearchParams(posts.map((post) => ["post", post]));
  try {
    // The header says that no page was asked for: the visit goes on as it was.
    const answer = await fetch("/seen", { method: "POST", body, keepalive: true, headers: { "HX-Request": "true" } });
    if (answer.status >= 500) throw new Error(`status ${answer.status}`);
  } catch {
    posts.forEach((post) => waiting.add(post)); // sent again with the next ones
  }
}

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting, intersectionRatio, intersectionRect, rootBounds } of entries) {
    const visible = isIntersecting
      && (intersectionRatio >= 0.5 || intersectionRect.height >= (rootBounds?.height ?? innerHeight) / 2);
    if (visible && !timers.has(target)) {
      timers.set(target, setTimeout(() => {
        observer.unobserve(target);
        timers.delete(target);
        noteSeen(target);
      }, SEEN_MS));
    } else if (!visible) {
      clearTimeout(timers.get(target));
      timers.delete(target);
    }
  }
}, { threshold: [0, 0.1, 0.25, 0.5, 0.75, 1] });

const observed = new WeakSet();
function observeCards() {
  for (const card of document.querySelectorAll("[data-post]")) {
    if (observed.has(card)) continue;
    observed.add(card);
    observer.observe(card);
  }
}

observeCards();
document.addEventListener("htmx:after:swap", observeCards);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "hidden") return;
  for (const timer of timers.values()) clearTimeout(timer);
  timers.clear();
  sendSeen();
});

// A button that replaced itself has the focus again; after an error it can be pressed again.
let pressed = null;
document.addEventListener("submit", (event) => {
  if (event.target.matches("form.like")) pressed = event.target.elements.post.value;
}, true);
document.addEventListener("htmx:after:swap", () => {
  if (pressed === null || document.activeElement !== document.body) return;
  const forms = [...document.querySelectorAll("form.like")];
  forms.find((form) => form.elements.post.value === pressed)?.querySelector("button").focus({ preventScroll: true });
  pressed = null;
});
function allowAgain() {
  for (const form of document.querySelectorAll("form[hx-post][data-sent]")) {
    delete form.dataset.sent;
    form.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  }
}
document.addEventListener("htmx:error", allowAgain);
document.addEventListener("htmx:after:request", (event) => {
  if ((event.detail?.ctx?.response?.status ?? 0) >= 400) allowAgain();
});
