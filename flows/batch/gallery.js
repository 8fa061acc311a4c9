// SPDX-License-Identifier: Apache-2.0
"use strict";
(() => {
  const notes = new WeakMap();

  // A click creates the video element, so that no video is loaded before a user wants it.
  const play = (link) => {
    const image = link.querySelector("img");
    const stage = document.createElement("div");
    const video = document.createElement("video");
    stage.className = "stage";
    video.controls = true;
    video.preload = "none";
    video.playsInline = true;
    video.setAttribute("aria-label", `Video ${nameOf(link)}`);
    if (image && !image.classList.contains("broken")) video.poster = image.src;
    video.src = link.href;
    notes.get(link)?.remove();
    stage.append(video);
    link.hidden = true;
    link.after(stage);
    video.focus();
    video.play().catch(() => {}); // the error event reports a failure to load
  };

  const stop = (video) => {
    const stage = video.parentElement;
    const link = stage.previousElementSibling;
    const hadFocus = document.activeElement === video;
    video.pause();
    stage.remove();
    link.hidden = false;
    if (hadFocus) link.focus();
    return link;
  };

  const showFailure = (video) => {
    const link = stop(video);
    const note = document.createElement("p");
    const direct = document.createElement("a");
    direct.href = link.href;
    direct.rel = "noreferrer";
    direct.textContent = "Open the file";
    note.className = "note problem";
    note.setAttribute("role", "alert");
    note.append("This video cannot be played here. ", direct);
    link.after(note);
    notes.set(link, note);
  };

  const nameOf = (element) => element.closest(".card").querySelector(".id").textContent;

  const copy = async (button) => {
    const text = button.previousSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().setBaseAndExtent(button.parentElement, 0, button.parentElement, 1);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    document.querySelector(".copied").textContent = `Copied: ${text.textContent}`;
    button.addEventListener("blur", () => (button.textContent = "Copy"), { once: true });
  };

  const addCopyButtons = (details) => {
    for (const value of details.querySelectorAll("dd:not(:has(button))")) {
      const label = value.previousElementSibling.textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy ${label} of ${nameOf(value)}`);
      value.append(button);
    }
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.play");
    const button = event.target.closest("button.copy");
    if (button) copy(button);
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    play(link);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.matches?.("video")) stop(event.target);
  });
  // These events do not bubble, so they are handled in the capture phase.
  const capture = (name, act) => document.addEventListener(name, (event) => act(event.target), true);
  capture("toggle", (element) => element.matches("details[open]") && addCopyButtons(element));
  capture("error", (element) => {
    if (element.matches?.("video")) showFailure(element);
    if (element.matches?.("img")) element.classList.add("broken");
  });
  capture("play", (playing) => {
    for (const video of document.querySelectorAll("video")) if (video !== playing) video.pause();
  });

  document.addEventListener("DOMContentLoaded", () => {
    const cards = [...document.querySelectorAll(".card")];
    const list = document.querySelector(".cards");
    const buttons = [...document.querySelectorAll(".outcomes button")];
    const search = document.querySelector("[type=search]");
    const shown = document.querySelector(".shown");
    const nothing = document.querySelector(".nothing");
    const plain = (text) => text.normalize("NFKC").toLowerCase();
    const size = Number(list.dataset.group);
    let texts = null;
    let asked = 0;
    let outcome = "";

    const textOf = (card) =>
      plain([".id", ".prompt"].map((what) => card.querySelector(what)?.textContent ?? "").join("\n"));

    const filter = () => {
      const words = plain(search.value).split(/\s+/).filter(Boolean);
      if (words.length) texts ??= cards.map(textOf);
      const wanted = cards.filter(
        (card, at) =>
          (!outcome || card.dataset.outcome === outcome) &&
          words.every((word) => texts[at].includes(word)),
      );
      const groups = [];
      for (let at = 0; at < wanted.length; at += size) {
        const group = document.createElement("div");
        group.className = "group";
        group.append(...wanted.slice(at, at + size));
        groups.push(group);
      }
      list.replaceChildren(...groups);
      const numbers = [wanted.length, cards.length].map((number) => number.toLocaleString("en"));
      shown.textContent = outcome || words.length ? `${numbers.join(" of ")} shown` : "";
      nothing.hidden = wanted.length > 0;
      if (list.getBoundingClientRect().top < 0) list.scrollIntoView();
    };
    const filterSoon = () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(filter);
    };

    if (!cards.length) return;
    document.documentElement.classList.add("live");
    search.hidden = false;
    search.addEventListener("input", filterSoon);
    for (const button of buttons) {
      button.disabled = false;
      button.addEventListener("click", () => {
        outcome = button.value;
        for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
        filterSoon();
      });
    }
  });
})();
