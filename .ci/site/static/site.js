// The sidebar is as long as the book: show where one is.
document.addEventListener("DOMContentLoaded", () => {
  const bar = document.querySelector(".sidebar-scroll"), here = bar?.querySelector(".current-page")
  if (here) bar.scrollTop = here.getBoundingClientRect().top - bar.getBoundingClientRect().top - bar.clientHeight/2
})
