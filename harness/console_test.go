package harness

import (
	"reflect"
	"testing"

	"loopnfs/harness/vm/job"
)

func TestConsoleStacks(t *testing.T) {
	const console = "[    1.0] sysrq: Show Blocked State\r\n" +
		"[    1.0] task:old             state:D stack:0     pid:7\r\n" +
		"[    9.1] sysrq: Show Blocked State\r\n" +
		"[    9.1] task:kworker/u2:3    state:D stack:0     pid:60    tgid:60    ppid:2      flags:0x00004000\r\n" +
		"[    9.1] Workqueue: rpciod rpc_async_schedule\r\n" +
		"[    9.1] Call Trace:\r\n" +
		"[    9.1]  <TASK>\r\n" +
		"[    9.1]  __schedule+0x3fe/0xbf0\r\n" +
		"[    9.1]  ? __pfx_wake+0x10/0x10\r\n" +
		"[    9.1]  wait_on_commit+0x4a/0x80 [nfs]\r\n" +
		"[    9.1]  </TASK>\r\n" +
		"[    9.1] task:loopnfs         state:D stack:0     pid:243   ppid:1      flags:0x00000002\r\n" +
		"[    9.1]  <TASK>\r\n" +
		"[    9.1]  shrink_node+0x1/0x2\r\n"
	want := []job.Stack{
		{PID: 60, Comm: "kworker/u2:3", State: "D", Frames: []string{"__schedule", "wait_on_commit"}},
		{PID: 243, Comm: "loopnfs", State: "D", Frames: []string{"shrink_node"}},
	}
	if got := consoleStacks(console); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, damaged := range []string{"", "sysrq: Show Blocked State\n task:", "sysrq: Show Blocked State\n[ 1] task:x state:\n[ 1] <TASK>\n[ 1] +0x"} {
		consoleStacks(damaged)
	}
}
