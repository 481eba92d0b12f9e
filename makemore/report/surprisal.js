"use strict";
{
  // What the mouse shows as a tooltip, a touch shows in the bar.
  const text = document.querySelector(".text");
  const bar = document.querySelector(".bar");
  const show = (event) => {
    const piece = event.target.closest(".text span");
    if (!piece) return;
    text.querySelector(".on")?.classList.remove("on");
    piece.classList.add("on");
    bar.textContent = `${JSON.stringify(piece.textContent)}: ${piece.title}`;
  };
  text.addEventListener("click", show);
  text.addEventListener("mouseover", show);
}
