package gate_test

import (
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"sync"
	"testing"

	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/module"
)

// Directories of unpacked kernel packages, and the directory with the packages
// of their headers.
const (
	kernelsEnv = "KILN_TEST_KERNELS"
	debsEnv    = "KILN_TEST_DEBS"
)

// A whole kernel's own modules are a layer over its naked self: whatever the
// gate says of them is false, but for firmware that no kernel package has.
func TestWholeKernels(t *testing.T) {
	for _, root := range kernels(t) {
		t.Run(filepath.Base(root), func(t *testing.T) {
			s, paths := wholeKernel(t, root)
			layer := gate.Layer{Name: "all", Modules: readAll(t, root, s.Release, paths, certificates(t, root))}
			firmware := 0
			for _, f := range gate.Check(s, []gate.Layer{layer}) {
				if f.Code == gate.Firmware {
					firmware++
					continue
				}
				t.Errorf("%s: %s", f.Code, f)
			}
			t.Logf("%d modules, %d of them without their firmware", len(paths), firmware)
			if len(paths) > 3000 && firmware < 100 {
				t.Error("hundreds of drivers need firmware; the check did not look")
			}
		})
	}
}

// One symbol that changed is found wherever it is used, and nowhere else.
func TestWholeKernelChanged(t *testing.T) {
	root := kernels(t)[0]
	s, paths := wholeKernel(t, root)
	layer := gate.Layer{Name: "all", Modules: readAll(t, root, s.Release, paths, certificates(t, root))}
	const symbol = "register_netdevice"
	want := map[string]bool{}
	for _, m := range layer.Modules {
		for _, im := range m.Info.Imports {
			if im.Name == symbol {
				want[m.Path] = true
			}
		}
	}
	changed := s.Symbols[symbol]
	changed.CRC++
	s.Symbols[symbol] = changed
	got := 0
	for _, f := range gate.Check(s, []gate.Layer{layer}) {
		if f.Code == gate.SymbolVersion {
			got++
			if !want[f.File] || len(f.Symbols) != 1 || f.Symbols[0] != symbol {
				t.Errorf("%s", f)
			}
		}
	}
	if got != len(want) || got == 0 {
		t.Errorf("%d modules found, want %d", got, len(want))
	}
}

func BenchmarkWholeKernel(b *testing.B) {
	for _, root := range kernels(b) {
		b.Run(filepath.Base(root), func(b *testing.B) {
			s, paths := wholeKernel(b, root)
			trusted := certificates(b, root)
			b.Run("read", func(b *testing.B) {
				for b.Loop() {
					readAll(b, root, s.Release, paths, trusted)
				}
			})
			layer := gate.Layer{Name: "all", Modules: readAll(b, root, s.Release, paths, trusted)}
			b.Run("check", func(b *testing.B) {
				for b.Loop() {
					gate.Check(s, []gate.Layer{layer})
				}
			})
		})
	}
}

func kernels(t testing.TB) []string {
	list := os.Getenv(kernelsEnv)
	if list == "" || os.Getenv(debsEnv) == "" {
		t.Skipf("SKIPPED: %s and %s are not set", kernelsEnv, debsEnv)
	}
	return filepath.SplitList(list)
}

// wholeKernel returns a kernel without modules, and the paths of its modules.
func wholeKernel(t testing.TB, root string) (*gate.System, []string) {
	t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if len(dirs) != 1 {
		t.Fatalf("%s: want one lib/modules/RELEASE", root)
	}
	release := filepath.Base(dirs[0])
	file := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	s, err := gate.NewSystem(release, "amd64", gate.Files{
		Config:         file(filepath.Join(root, "boot/config-"+release)),
		Symvers:        symversOf(t, release),
		Order:          file(filepath.Join(dirs[0], "modules.order")),
		Builtin:        file(filepath.Join(dirs[0], "modules.builtin")),
		BuiltinModinfo: file(filepath.Join(dirs[0], "modules.builtin.modinfo")),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	err = filepath.WalkDir(dirs[0], func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && module.IsFile(p) {
			rel, _ := filepath.Rel(dirs[0], p)
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, paths
}

// symversOf reads Module.symvers out of the kernel's headers package.
func symversOf(t testing.TB, release string) []byte {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(os.Getenv(debsEnv), "linux-headers-"+release+"_*.deb"))
	if len(found) != 1 {
		t.Fatalf("%s: want one package linux-headers-%s", os.Getenv(debsEnv), release)
	}
	d, err := deb.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	name := "usr/src/linux-headers-" + release + "/Module.symvers"
	tr, err := d.Tree(t.Context(), func(n string) bool { return n == name })
	if err != nil {
		t.Fatal(err)
	}
	ino := tr.Lookup(name)
	data := make([]byte, ino.Size())
	if _, err := ino.Content.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

// certificates are those in the kernel's image.
func certificates(t testing.TB, root string) []*x509.Certificate {
	t.Helper()
	k, err := kernel.Import(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	list, err := k.Certificates()
	if err != nil || len(list) == 0 {
		t.Fatalf("certificates %v, %v", list, err)
	}
	return list
}

// readAll reads modules with all processors.
func readAll(t testing.TB, root, release string, paths []string, trusted []*x509.Certificate) []gate.Module {
	t.Helper()
	out := make([]gate.Module, len(paths))
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(paths); i += workers {
				data, err := os.ReadFile(filepath.Join(root, "lib/modules", release, paths[i]))
				if err != nil {
					t.Error(err)
					return
				}
				if out[i], err = gate.Read("usr/lib/modules/"+release+"/"+paths[i], data, trusted); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return out
}
