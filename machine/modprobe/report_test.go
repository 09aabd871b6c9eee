//go:build linux

package modprobe

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/kilnhq/kiln/machine/modules"
)

func TestReports(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "modprobe")
	if got, err := Reports(dir); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
	// The kernel calls modprobe many times at once, and PID 1 reads meanwhile.
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for _, name := range []string{"a", "b"} {
				if err := write(dir, modules.Report{Name: name, State: modules.Failed, Reason: fmt.Sprint("no ", i), File: "x.ko"}); err != nil {
					t.Error(err)
				}
				if got, err := Reports(dir); err != nil || got[name].State != modules.Failed {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	want := modules.Report{Name: "a", State: modules.Loaded, Parameters: `x="1 2"`, File: "a.ko"}
	if err := write(dir, want); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{".tmp": "{", "c.json": "{", "d.json": `{"Name":"e"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Reports(dir)
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got["a"], want) {
		t.Errorf("got %v, %v; want a and b, a being %v", got, err, want)
	}
	if err := write(filepath.Join(dir, "no/such"), want); err == nil {
		t.Error("wrote where nothing is: want an error on a system that is no node")
	}
}

// A module that the kernel asks for in vain all the time is told about once.
func TestNews(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "modprobe")
	reports := []modules.Report{
		{Name: "a", State: modules.Failed, Reason: "no", File: "a.ko"},
		{Name: "b", State: modules.Loaded, File: "b.ko", Before: true},
		{Name: "crypto_x", State: modules.Failed, Reason: "no module of that name"},
		{Name: "d", State: modules.Loaded, Parameters: "x=1", File: "d.ko"},
	}
	if got := leaveWord(dir, reports); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("got %v, want a", got)
	}
	if got := leaveWord(dir, reports); len(got) != 0 {
		t.Errorf("got %v, want no news", got)
	}
	reports[0].Reason = "no again"
	if got := leaveWord(dir, reports); len(got) != 1 {
		t.Errorf("got %v, want the new reason", got)
	}
	got, err := Reports(dir)
	if want := map[string]modules.Report{"a": reports[0], "d": reports[3]}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}
