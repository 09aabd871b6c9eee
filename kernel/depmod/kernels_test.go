package depmod_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
)

// kernelsEnv lists directories, separated by colons, that hold an unpacked
// kernel package each: lib/modules/RELEASE or usr/lib/modules/RELEASE.
const kernelsEnv = "KILN_TEST_KERNELS"

// eachKernel runs f for each module directory of the kernels to test with.
func eachKernel(t *testing.T, f func(t *testing.T, dir string)) {
	dirs := moduleDirs(t)
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { f(t, dir) })
	}
}

func moduleDirs(t testing.TB) []string {
	list := os.Getenv(kernelsEnv)
	if list == "" {
		t.Skipf("SKIPPED: %s is not set to directories of unpacked kernel packages", kernelsEnv)
	}
	var dirs []string
	for _, root := range filepath.SplitList(list) {
		found, _ := filepath.Glob(filepath.Join(root, "lib/modules/*"))
		if len(found) == 0 {
			found, _ = filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
		}
		if len(found) == 0 {
			t.Fatalf("%s: %s has no lib/modules/RELEASE", kernelsEnv, root)
		}
		dirs = append(dirs, found...)
	}
	return dirs
}

// modulePaths returns the modules below dir, relative to it.
func modulePaths(t testing.TB, dir string) []string {
	var paths []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && module.IsFile(p) {
			rel, _ := filepath.Rel(dir, p)
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// parseAll parses the modules below dir with two workers.
func parseAll(t testing.TB, dir string) []depmod.Module {
	paths := modulePaths(t, dir)
	mods := make([]depmod.Module, len(paths))
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			var p module.Parser
			var buf []byte
			for i := worker; i < len(paths); i += 2 {
				var err error
				if buf, err = readInto(buf, filepath.Join(dir, paths[i])); err != nil {
					t.Error(err)
					return
				}
				info, err := p.Parse(paths[i], buf)
				if err != nil {
					t.Error(err)
					return
				}
				mods[i] = depmod.Module{Path: paths[i], Info: info}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return mods
}

// readInto reads a file into buf, which grows as needed.
func readInto(buf []byte, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if int64(cap(buf)) < st.Size() {
		buf = make([]byte, st.Size()*2)
	}
	buf = buf[:st.Size()]
	_, err = f.ReadAt(buf, 0)
	return buf, err
}

// input returns the input that belongs to the directory dir, without modules.
func input(t testing.TB, dir string) depmod.Input {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return b
	}
	return depmod.Input{
		Order:          read("modules.order"),
		Builtin:        read("modules.builtin"),
		BuiltinModinfo: read("modules.builtin.modinfo"),
	}
}

// reference returns the files that depmod writes for the modules of dir, what
// it prints and the CPU time it takes.
func reference(t testing.TB, dir string, args ...string) (map[string][]byte, string, time.Duration) {
	root := t.TempDir()
	copyDir := filepath.Join(root, "lib/modules", filepath.Base(dir))
	if err := os.MkdirAll(copyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	given := map[string]bool{"modules.order": true, "modules.builtin": true, "modules.builtin.modinfo": true}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.IsDir() || given[e.Name()] {
			if err := os.Symlink(filepath.Join(dir, e.Name()), filepath.Join(copyDir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Modules at the top level do not occur in practice.
	args = append(append([]string{"-b", root}, args...), filepath.Base(dir))
	cmd := exec.Command(oracle.Tool(t, "depmod"), args...)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("depmod: %v\n%s", err, out)
	}
	files := map[string][]byte{}
	list, err = os.ReadDir(copyDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "modules.") && !given[e.Name()] {
			if files[e.Name()], err = os.ReadFile(filepath.Join(copyDir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return files, string(out), time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// compare reports the files that differ from the reference.
func compare(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	if len(want) == 0 {
		t.Error("depmod wrote nothing")
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("%s: missing", name)
		} else if !bytes.Equal(g, w) {
			t.Errorf("%s differs from depmod's: %s", name, firstDifference(g, w))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: depmod does not write it", name)
		}
	}
}

func firstDifference(got, want []byte) string {
	n := 0
	for n < len(got) && n < len(want) && got[n] == want[n] {
		n++
	}
	around := func(b []byte) []byte { return b[max(0, min(n-60, len(b))):min(n+60, len(b))] }
	return fmt.Sprintf("at byte %d: found %q (of %d), wanted %q (of %d)", n, around(got), len(got), around(want), len(want))
}

func TestKernels(t *testing.T) {
	eachKernel(t, func(t *testing.T, dir string) {
		in := input(t, dir)
		in.Modules = parseAll(t, dir)
		start := time.Now()
		res, err := depmod.Index(in)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d modules indexed in %v", len(in.Modules), time.Since(start))
		want, _, _ := reference(t, dir)
		compare(t, res.Files, want)
		selectLikeModprobe(t, dir, in, res.Files)
		unresolvedLikeDepmod(t, dir, in)
	})
}

// selectLikeModprobe compares the closure of each module with the line of
// modules.dep, and for some with all that modprobe would load.
func selectLikeModprobe(t *testing.T, dir string, in depmod.Input, files map[string][]byte) {
	root := t.TempDir()
	fake := filepath.Join(root, "lib/modules", filepath.Base(dir))
	if err := os.MkdirAll(fake, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(fake, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var entries []module.Entry
	for _, m := range in.Modules {
		entries = append(entries, module.Entry(m))
	}
	set := module.NewSet(entries, in.Builtin)
	for line := range strings.Lines(string(files["modules.dep"])) {
		path, deps, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		sel, err := set.Select(path)
		if err != nil {
			t.Fatal(err)
		}
		selected := map[string]bool{}
		for _, p := range sel.Paths {
			selected[p] = true
		}
		for _, p := range append(strings.Fields(deps), path) {
			if !selected[p] {
				t.Errorf("%s: the selection lacks %s", path, p)
			}
		}
	}
	for _, name := range []string{"ext4", "xfs", "btrfs", "nfsd", "e1000e", "virtio_net", "nft_compat", "vfio", "drm", "ceph", "xt_LOG"} {
		if len(set.Lookup(name)) == 0 {
			continue // built in, or another kind of kernel
		}
		out, err := exec.Command(oracle.Tool(t, "modprobe"), "-D", "-d", root, "-S", filepath.Base(dir), "-C", t.TempDir(), name).CombinedOutput()
		if err != nil {
			t.Errorf("modprobe %s: %v\n%s", name, err, out)
			continue
		}
		sel, err := set.Select(name)
		if err != nil {
			t.Fatal(err)
		}
		selected := map[string]bool{}
		for _, p := range sel.Paths {
			selected[p] = true
		}
		n := 0
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); f[0] == "insmod" {
				n++
				if p := strings.TrimPrefix(f[1], fake+"/"); !selected[p] {
					t.Errorf("%s: modprobe loads %s, which is not selected", name, p)
				}
			}
		}
		t.Logf("%s: modprobe loads %d modules, %d selected", name, n, len(sel.Paths))
	}
	if sel, err := set.Select("kernel/drivers/net/**", "!kernel/drivers/net/ethernet/**"); err != nil {
		t.Error(err)
	} else {
		t.Logf("network drivers: %d modules, %d firmware files", len(sel.Paths), len(sel.Firmware))
	}
}

// unresolvedLikeDepmod compares the missing symbols with depmod's warnings, for
// a kernel that exports what its modules import but the names with a k.
func unresolvedLikeDepmod(t *testing.T, dir string, in depmod.Input) {
	for _, m := range in.Modules {
		for _, imp := range m.Info.Imports {
			if imp.Name[0] != 'k' {
				in.SystemMap = fmt.Appendf(in.SystemMap, "ffffffff82a0c3e4 r __ksymtab_%s\n", imp.Name)
			}
		}
	}
	res, err := depmod.Index(in)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "System.map")
	if err := os.WriteFile(file, in.SystemMap, 0o644); err != nil {
		t.Fatal(err)
	}
	_, out, _ := reference(t, dir, "-e", "-F", file)
	want := map[string]bool{}
	for line := range strings.Lines(out) {
		if at := strings.Index(line, "/kernel/"); at > 0 && strings.Contains(line, " needs unknown symbol ") {
			want[strings.TrimSpace(line[at+1:])] = true
		}
	}
	for _, u := range res.Unresolved {
		key := u.Path + " needs unknown symbol " + u.Symbol
		if !want[key] {
			t.Errorf("depmod does not miss %s", key)
		}
		delete(want, key)
	}
	if len(res.Unresolved) == 0 || len(want) > 0 {
		t.Errorf("%d symbols found missing; depmod misses %d others", len(res.Unresolved), len(want))
	}
	t.Logf("%d symbols missing", len(res.Unresolved))
}
