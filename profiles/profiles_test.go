package profiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuiltin(t *testing.T) {
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Name != name {
			t.Errorf("%s.yaml is named %q", name, p.Name)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	if _, err := Load("metl"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), `unknown profile "metl"; did you mean "metal"?`) {
		t.Errorf("got %v", err)
	}
	if _, err := Load("bogus"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "known: akamai, alibaba, aws") {
		t.Errorf("got %v", err)
	}
	if _, err := Load("./none.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte("version: v1alpha1\nnam: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), file+`:2:1: unknown key "nam"; did you mean "name"?`) {
		t.Errorf("got %v", err)
	}
}

func TestParse(t *testing.T) {
	p, err := Parse("p", []byte("version: v1alpha1\nname: x\nplatform: kvm\ndisk: {size: 2GiB, partitions: {state: 1000000kB, boot: 300MiB}}\n"))
	if err == nil || !strings.Contains(err.Error(), "disk.partitions.state 1000000000: want a multiple of 1MiB") {
		t.Errorf("got %v, %v", p, err)
	}
	p, err = Parse("p", []byte("version: v1alpha1\nname: x\nplatform: kvm\ndisk: {size: 2GiB}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Disk.Size != 2*GiB || p.Disk.Partitions.State != 100*MiB || p.Arch != "amd64" || p.Disk.BootLoader != Dual {
		t.Errorf("got %+v", p)
	}
}

func TestValidate(t *testing.T) {
	const head = "version: v1alpha1\nname: x\nplatform: y\n"
	for _, tt := range []struct{ in, want string }{
		{"version: v2\nname: x\nplatform: y\n", `version "v2"`},
		{"version: v1alpha1\nplatform: y\n", `name "": want one word`},
		{head + "arch: amd46\n", `arch "amd46"; did you mean "amd64"?`},
		{head + "disk: {layers: bot}\n", "disk.layers \"bot\"; did you mean \"boot\"?"},
		{head + "disk: {sectorSize: 1024}\n", "disk.sectorSize 1024: want 512 or 4096"},
		{head + "disk: {sectorSize: 4096}\n", "no BIOS boots from 4096-byte sectors; set disk.bootLoader: uefi"},
		{head + "arch: arm64\n", "arm64 machines have no BIOS"},
		{head + "output: {format: qcow}\n", `output.format "qcow"; did you mean "qcow2"?`},
		{head + "disk: {size: 12parsecs}\n", `p:4:14: size "12parsecs": want a whole number with a unit`},
	} {
		_, err := Parse("p", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q)\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range Names() {
		data, err := builtin.ReadFile(name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := Parse("p", data); err == nil && p.Validate() != nil {
			t.Error("Parse returned an invalid profile")
		}
	})
}
