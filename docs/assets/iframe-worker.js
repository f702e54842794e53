/*
 * Search on pages that are opened from disk. Browsers start no worker for such pages, so this class takes its place and
 * runs the script of the search in a hidden frame. The theme finds it by the name of this file.
 */
(() => {
  if (window.location.protocol !== "file:") return;

  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.appendChild(frame);
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => {
        setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })));
      };
      this.scope.importScripts = (...urls) => urls.reduce((before, one) => before.then(() => this.load(one)), Promise.resolve());
      this.ready = this.load(url);
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.scope.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`cannot load ${url}`));
        this.scope.document.head.appendChild(script);
      });
    }

    postMessage(data) {
      const sent = structuredClone(data);
      this.ready.then(() => this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data: sent })));
    }
  }
  window.Worker = FrameWorker;
})();
