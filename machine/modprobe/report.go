//go:build linux

package modprobe

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/modules"
)

// Dir is where modprobe leaves word of what became of modules: a file for each,
// NAME.json. Who called it, mostly the kernel, does not listen.
const Dir = "/run/kiln/modprobe"

// leaveWord leaves word of the modules in dir and returns those whose failure
// is news: the kernel may ask for the same module again and again.
func leaveWord(dir string, reports []modules.Report) (failed []modules.Report) {
	for _, r := range reports {
		if r.File == "" || r.Before {
			continue // a name that the kernel tried in vain, or nothing new
		}
		old, known := read(dir, r.Name)
		if known && old == r {
			continue
		}
		_ = write(dir, r)
		if r.State == modules.Failed {
			failed = append(failed, r)
		}
	}
	return failed
}

// tell writes to the kernel's log, and so to the console, what failed.
func tell(failed []modules.Report) {
	for _, r := range failed {
		if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
			const warning = 4
			console.New(console.Priority{Writer: f, Level: warning}, console.SinceKernelStart).Module(
				console.F("name", r.Name), console.F("state", r.State), console.F("reason", r.Reason))
			f.Close()
		}
	}
}

// write makes the file appear at once, whatever other processes do.
func write(dir string, r modules.Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err // not a node that is up
	}
	f, err := os.CreateTemp(dir, "."+r.Name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, r.Name+".json"))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// Reports reads what the calls of modprobe left in dir, by the modules' names.
func Reports(dir string) (map[string]modules.Report, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	reports := map[string]modules.Report{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		name := strings.TrimSuffix(e.Name(), ".json")
		if r, ok := read(dir, name); ok {
			reports[name] = r
		}
	}
	return reports, nil
}

func read(dir, name string) (r modules.Report, ok bool) {
	data, err := os.ReadFile(filepath.Join(dir, name+".json"))
	ok = err == nil && json.Unmarshal(data, &r) == nil && r.Name == name
	return r, ok
}
