//go:build linux

package test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// diskFormats are the formats that qemu-img reads, what it calls them, and
// whether it can check them.
var diskFormats = map[string]struct {
	qemu  string
	check bool
	set   string
}{
	"qcow2":       {qemu: "qcow2", check: true},
	"qcow2 zlib":  {qemu: "qcow2", check: true, set: "output.compression=zlib"},
	"vhdx":        {qemu: "vhdx", check: true},
	"vmdk":        {qemu: "vmdk", check: true},
	"vmdk-sparse": {qemu: "vmdk", check: true},
	"vhd":         {qemu: "vpc"},
	"vhd-dynamic": {qemu: "vpc"},
	"qcow2 none":  {qemu: "qcow2", check: true, set: "output.compression=none"},
}

// An appliance for VMware: the descriptor first, then the manifest, whose digests
// are those of what an archiver unpacks, then the disk.
func TestOVA(t *testing.T) {
	kiln, raw, dir := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE"), t.TempDir()
	file := filepath.Join(dir, "metal.ova")
	run(t, kiln, "convert", raw, "--output", file)
	var names []string
	for name := range strings.Lines(run(t, oracle.Tool(t, "tar"), "-tf", file)) {
		names = append(names, strings.TrimSpace(name))
	}
	if len(names) != 3 || filepath.Ext(names[0]) != ".ovf" || filepath.Ext(names[1]) != ".mf" || filepath.Ext(names[2]) != ".vmdk" {
		t.Fatalf("members %v, want OVF, manifest and VMDK", names)
	}
	run(t, oracle.Tool(t, "tar"), "-xf", file, "-C", dir)
	for _, name := range []string{names[0], names[2]} {
		want := "SHA256(" + name + ")= " + digest(t, filepath.Join(dir, name)) + "\n"
		if manifest := string(read(t, filepath.Join(dir, names[1]))); !strings.Contains(manifest, want) {
			t.Errorf("no %q in the manifest\n%s", want, manifest)
		}
	}
	if out := run(t, oracle.Tool(t, "qemu-img"), "compare", "-f", "raw", "-F", "vmdk", raw, filepath.Join(dir, names[2])); !strings.Contains(out, "Images are identical.") {
		t.Errorf("qemu-img compare: %s", out)
	}
	if out := run(t, kiln, "diff", raw, file); out != "" {
		t.Errorf("kiln diff: %s", out)
	}
}

// A compressed disk is what the usual program unpacks, and need not be unpacked to
// be looked at.
func TestCompressed(t *testing.T) {
	kiln, raw := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE")
	for suffix, program := range map[string]string{"zst": "zstd", "gz": "gzip", "xz": "xz"} {
		file := filepath.Join(t.TempDir(), "metal.raw."+suffix)
		run(t, kiln, "convert", raw, "--output", file)
		unpacked := strings.TrimSuffix(file, "."+suffix)
		run(t, oracle.Tool(t, program), "-dk", file)
		if digest(t, unpacked) != digest(t, raw) {
			t.Errorf("%s: unpacked it is another disk", suffix)
		}
		if out := run(t, kiln, "verify", file); !strings.Contains(out, ": whole, raw."+suffix) {
			t.Errorf("%s: kiln verify: %s", suffix, out)
		}
	}
	foreign := filepath.Join(t.TempDir(), "foreign.raw.gz")
	run(t, oracle.Tool(t, "sh"), "-c", `head -c 1000000 "$1" | gzip >"$2"`, "sh", raw, foreign)
	out, err := exec.Command(kiln, "verify", foreign).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not compressed in blocks that can be read alone: a gzip stream without an index after it; unpack it first") {
		t.Errorf("what gzip wrote: %v\n%s", err, out)
	}
}

// Compute Engine's archive, as GNU tar unpacks it.
func TestGCE(t *testing.T) {
	kiln, raw, dir := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE"), t.TempDir()
	file := filepath.Join(dir, "gcp.tar.gz")
	run(t, kiln, "convert", raw, "--output", file)
	run(t, oracle.Tool(t, "tar"), "-xzf", file, "-C", dir)
	if digest(t, filepath.Join(dir, "disk.raw")) != digest(t, raw) {
		t.Error("unpacked it is another disk")
	}
	if out := run(t, kiln, "diff", raw, file); out != "" {
		t.Errorf("kiln diff: %s", out)
	}
}

// A machine for XenServer, as xva-img unpacks it.
func TestXVA(t *testing.T) {
	kiln, raw, dir := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE"), t.TempDir()
	file, back := filepath.Join(dir, "metal.xva"), filepath.Join(dir, "back.raw")
	run(t, kiln, "convert", raw, "--output", file)
	run(t, oracle.Tool(t, "tar"), "-xf", file, "-C", dir)
	refs, err := filepath.Glob(filepath.Join(dir, "Ref:*"))
	if err != nil || len(refs) != 1 {
		t.Fatalf("disks %v, %v, want one", refs, err)
	}
	run(t, oracle.Tool(t, "xva-img"), "-p", "disk-export", refs[0]+"/", back)
	if digest(t, back) != digest(t, raw) {
		t.Error("unpacked it is another disk")
	}
	if out := run(t, kiln, "diff", raw, file); out != "" {
		t.Errorf("kiln diff: %s", out)
	}
}

// buildFormat builds the test's image in a format.
func buildFormat(t *testing.T, name string) string {
	t.Helper()
	format, _, _ := strings.Cut(name, " ")
	file := filepath.Join(t.TempDir(), "metal."+format)
	args := []string{"build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"),
		"--format", format, "--output", file}
	if set := diskFormats[name].set; set != "" {
		args = append(args, "--set", set)
	}
	run(t, oracle.Artifact(t, "KILN_BIN"), args...)
	return file
}

// The disk is the same in every format: qemu-img says so, and kiln.
func TestFormats(t *testing.T) {
	qemuImg, kiln, raw := oracle.Tool(t, "qemu-img"), oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE")
	for name, f := range diskFormats {
		t.Run(name, func(t *testing.T) {
			file := buildFormat(t, name)
			if out := run(t, qemuImg, "compare", "-f", "raw", "-F", f.qemu, raw, file); !strings.Contains(out, "Images are identical.") {
				t.Errorf("qemu-img compare: %s", out)
			}
			if f.check {
				if out := run(t, qemuImg, "check", "-f", f.qemu, file); !strings.Contains(out, "No errors were found") {
					t.Errorf("qemu-img check: %s", out)
				}
			}
			want := strings.Fields(name)[0]
			if f.qemu == "vmdk" {
				want = "vmdk"
			}
			if out := run(t, kiln, "verify", file); !strings.Contains(out, ": whole, "+want) {
				t.Errorf("kiln verify: %s", out)
			}
			if out := run(t, kiln, "diff", raw, file); out != "" {
				t.Errorf("kiln diff: %s", out)
			}
			back := filepath.Join(t.TempDir(), "back.raw")
			run(t, kiln, "convert", file, "--output", back)
			if digest(t, back) != digest(t, raw) {
				t.Error("converted back to raw it is another disk")
			}
		})
	}
}

// Two images that differ in an extension and an argument, as kiln diff sees them.
func TestDiff(t *testing.T) {
	kiln, raw := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_IMAGE")
	other := filepath.Join(t.TempDir(), "other.raw")
	run(t, kiln, "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--kernel-arg", "debug=1", "--output", other)
	cmd := exec.Command(kiln, "diff", "--json", raw, other)
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	var changes []struct{ Kind, Name, Old, New string }
	if err := json.Unmarshal(out, &changes); err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, c := range changes {
		seen[c.Kind+" "+c.Name] = c.Old + ">" + c.New
	}
	if got := seen["kernel-arg grub debug"]; got != ">1" {
		t.Errorf("kernel argument: %q", got)
	}
	if got := seen["layer wireguard"]; !strings.HasPrefix(got, "1 extension ") || !strings.HasSuffix(got, ">") {
		t.Errorf("layer: %q", got)
	}
	modules := 0
	for name := range seen {
		if strings.HasPrefix(name, "module wireguard:") {
			modules++
		}
	}
	if modules == 0 {
		t.Errorf("no module among %d changes", len(changes))
	}
}

// The formats that QEMU boots from.
func TestBootFormats(t *testing.T) {
	for i, name := range []string{"qcow2", "vhd-dynamic", "vhdx", "vmdk"} {
		for j, firmware := range firmwares {
			t.Run(name+"/"+string(firmware), func(t *testing.T) {
				if testing.Short() {
					t.Skip("SKIPPED: boots machines")
				}
				if i%2 != j { // it is the same disk
					full(t)
				}
				t.Parallel()
				ctx, m := start(t, vm.Config{Image: buildFormat(t, name), Format: diskFormats[name].qemu, Firmware: firmware, Snapshot: true})
				loaded(t, ready(t, ctx, m), "wireguard")
			})
		}
	}
}
