package profiles

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestExtends(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	p, err := Load(write("a.yaml", `
version: v1alpha1
extends: metal
name: a
kernel: {remove: [quiet, console, init_on_alloc, slab_nomerge, page_alloc.shuffle, randomize_kstack_offset=on, vsyscall, nohibernate], append: [console=hvc0]}
disk: {multiple: 1GiB, partitions: {state: 64MiB}}
`))
	if err != nil {
		t.Fatal(err)
	}
	metal, err := Load("metal")
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "a" || p.Platform != metal.Platform || p.Description != "" || len(p.Devices) != len(metal.Devices) ||
		p.Disk.Multiple != GiB || p.Disk.Partitions.State != 64*MiB || p.Disk.BootLoader != Dual {
		t.Errorf("profile %+v", p)
	}
	if want := []string{"panic=10", "console=hvc0"}; !slices.Equal(p.Kernel.Args, want) || p.Kernel.Append != nil || p.Kernel.Remove != nil {
		t.Errorf("kernel %+v, want the arguments %v", p.Kernel, want)
	}
	b, c := filepath.Join(dir, "b.yaml"), filepath.Join(dir, "c.yaml")
	write("b.yaml", "version: v1alpha1\nextends: "+c+"\nname: b\n")
	write("c.yaml", "version: v1alpha1\nextends: "+b+"\nname: c\n")
	if _, err := Load(b); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "profiles extend each other: "+b+", "+c+", "+b) {
		t.Errorf("circle: %v", err)
	}
	if _, err := Load(write("d.yaml", "version: v1alpha1\nextends: metall\nname: d\n")); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), `did you mean "metal"?`) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := Load(write("e.yaml", "version: v1alpha1\nextends: metal\nname: e\ndisk: {multiple: 1GiB, size: 1536MiB}\n")); !errors.Is(err, ErrInvalid) ||
		!strings.Contains(err.Error(), "disk.size 1536MiB: the platform wants a multiple of 1GiB") {
		t.Errorf("multiple: %v", err)
	}
}

func TestSet(t *testing.T) {
	p, err := Load("metal")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"disk.size=8GiB", "disk.partitions.state=200MiB", "kernel.append=[a=b, c]", "kernel.remove=[panic]"} {
		if err := p.Set(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if p.Disk.Size != 8*GiB || p.Disk.Partitions.State != 200*MiB || !slices.Contains(p.Kernel.Args, "a=b") || slices.Contains(p.Kernel.Args, "panic=10") {
		t.Errorf("profile %+v", p)
	}
	for in, want := range map[string]string{
		"disk.size":            `--set "disk.size", want KEY=VALUE`,
		"disk.sise=8GiB":       `unknown key "sise" in disk; did you mean "size"?`,
		"disk.size=8GB}, x: {": "--set disk.size=8GB}, x: {:1:",
		"../x=1":               `--set "../x=1", want KEY=VALUE`,
		"disk=large":           "want a mapping",
	} {
		if err := p.Set(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}
