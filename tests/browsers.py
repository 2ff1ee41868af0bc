"""A headless Chromium for tests of pages."""

import json
import os
import shutil
import subprocess
import time

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Drop a file, which is an expression for a Blob, on an element's id.
DROP = """(async () => {
  const data = new DataTransfer()
  const blob = %s
  data.items.add(new File([blob], "dropped.jpg"))
  document.getElementById("%s").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}))
})()"""


class Browser:
    """A headless Chromium that is driven over pipes by its debugging protocol."""

    def __init__(self, folder, *more_flags):
        theirs, self.ours = os.pipe()
        self.answers, their_answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}"]
        flags += more_flags
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{their_answers} 2>/dev/null', CHROMIUM, *flags]
        self.process = subprocess.Popen(command, pass_fds=(theirs, their_answers), stdout=subprocess.DEVNULL)
        os.close(theirs), os.close(their_answers)
        self.number, self.rest, self.more = 0, b"", {}

    def close(self):
        os.close(self.ours), os.close(self.answers)
        self.process.kill(), self.process.wait()

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.more
        os.write(self.ours, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.answers, 1 << 20)
            line, _, self.rest = self.rest.partition(b"\0")
            if (answer := json.loads(line)).get("id") == self.number:
                return answer["result"]

    def open(self, url, width, ready="!!document.getElementById('save')"):
        """A new page of a width, once an expression is true in it."""
        self.more = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.more = {"sessionId": session}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")
        self.until(ready)
        return target

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
            time.sleep(0.05)


def chromium(folder, *flags):
    """A browser with its profile in a folder; the test is skipped where there is none."""
    if CHROMIUM is None or not shutil.which("bash"):
        pytest.skip("needs a browser: apt-get install chromium")
    return Browser(folder, *flags)
