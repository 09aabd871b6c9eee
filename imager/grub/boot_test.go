//go:build linux

package grub

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	mib       = 1 << 20
	coreStart = mib
	bootStart = 2 * mib
	bootSize  = 8 * mib
)

// bootDisk writes a disk from which a BIOS starts GRUB with SlotsConfig and the
// given files.
func bootDisk(t *testing.T, core []byte, files map[string]string) string {
	t.Helper()
	tr := tree.New()
	files["grub/grub.cfg"] = string(SlotsConfig(true))
	for name, content := range files {
		if err := tr.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := tr.Add(name, &tree.Inode{Mode: 0o644, Content: strings.NewReader(content)}); err != nil {
			t.Fatal(err)
		}
	}
	bootFS, err := ext4.Build(tr, ext4.Options{Size: bootSize, Label: "BOOT", UUID: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	code, err := BootSector(readBoot(t, "boot.img"), coreStart/sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	if core, err = Core(core, coreStart/sectorSize); err != nil {
		t.Fatal(err)
	}
	table := gpt.Table{DiskID: gpt.GUID{1}, SectorSize: sectorSize, Size: bootStart + bootSize + mib, BootCode: code, Partitions: []gpt.Partition{
		{},
		{Type: gpt.BIOSBoot, ID: gpt.GUID{2}, Name: "BIOS", Start: coreStart, Size: mib},
		{Type: gpt.LinuxFilesystem, ID: gpt.GUID{3}, Name: "BOOT", Start: bootStart, Size: bootSize},
	}}
	tables, err := table.Map()
	if err != nil {
		t.Fatal(err)
	}
	disk := extent.New(table.Size)
	for off, src := range map[int64]extent.Source{0: tables, coreStart: extent.Bytes(core), bootStart: bootFS} {
		if err := disk.Put(off, src); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, disk, nil); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// boot runs a machine, over restarts, until it prints a line with the text. It
// returns all lines with kiln's words.
func boot(t *testing.T, disk, until string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, oracle.Tool(t, "qemu-system-x86_64"), "-nodefaults", "-no-user-config",
		"-machine", "q35,i8042=off", "-accel", "tcg", "-m", "64", "-display", "none", "-serial", "stdio",
		"-drive", "if=none,id=disk,format=raw,file="+disk, "-device", "ide-hd,bus=ide.0,drive=disk")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	var all bytes.Buffer
	var lines []string
	for s := bufio.NewScanner(io.TeeReader(out, &all)); s.Scan(); {
		line := s.Text()
		if i := strings.Index(line, "kiln: "); i >= 0 {
			lines = append(lines, strings.TrimSpace(line[i+len("kiln: "):]))
		}
		if strings.Contains(line, until) {
			return lines
		}
	}
	t.Fatalf("the machine did not print %q in a minute:\n%s", until, all.String())
	return nil
}

// environment reads the environment block of a disk.
func environment(t *testing.T, disk string) Env {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := ext4.Open(io.NewSectionReader(f, bootStart, bootSize), bootSize)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, EnvSize)
	if _, err := fsys.Tree.Lookup("grub/grubenv").Content.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	e, err := ParseEnv(b)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestSlotsBoot boots disks whose slots are scripts that say what they are, in
// place of kernels.
func TestSlotsBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	core := makeCore(t, Format)
	encode := func(e Env, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	garbage, err := EncodeSlot(Entry{Title: "B", Linux: "/B/vmlinuz", Args: "kiln.slot=B"})
	if err != nil {
		t.Fatal(err)
	}
	const (
		a       = "echo \"kiln: A runs, failed=$failed trial=$trial tries=$tries\"\nwhile [ a = a ]; do\n\tset x=1\ndone\n"
		b       = "echo \"kiln: B runs, failed=$failed trial=$trial tries=$tries\"\nwhile [ a = a ]; do\n\tset x=1\ndone\n"
		restart = "echo 'kiln: B restarts'\nreboot\n"
	)
	for _, tt := range []struct {
		name  string
		files map[string]string
		lines string
		after Env // what the environment block has then; nil is not looked at
	}{
		{"trial fails", map[string]string{"A/slot.cfg": a, "B/slot.cfg": restart, "grub/grubenv": encode(Env{{"mine", "1"}}.Try(SlotB, 3))},
			"trying slot B, tries left: 2|B restarts|trying slot B, tries left: 1|B restarts|trying slot B, tries left: 0|B restarts|" +
				"slot B failed|booting slot A|A runs, failed=B trial= tries=",
			Env{{"mine", "1"}, {"failed", "B"}}},
		{"trial is good", map[string]string{"A/slot.cfg": a, "B/slot.cfg": b, "grub/grubenv": encode(Env(nil).Try(SlotB, MaxTries))},
			"trying slot B, tries left: 8|B runs, failed= trial=B tries=8", Env{{"trial", "B"}, {"tries", "8"}}},
		{"trial is no kernel", map[string]string{"A/slot.cfg": a, "B/slot.cfg": string(garbage), "B/vmlinuz": strings.Repeat("no kernel", 1000), "grub/grubenv": encode(Env(nil).Try(SlotB, 3))},
			"trying slot B, tries left: 2|slot B failed|booting slot A|A runs, failed=B trial= tries=", Env{{"failed", "B"}}},
		{"trial is torn", map[string]string{"A/slot.cfg": a, "B/slot.cfg": "", "grub/grubenv": encode(Env(nil).Try(SlotB, 3))},
			"slot B failed|booting slot A|A runs, failed=B trial= tries=", Env{{"failed", "B"}}},
		{"confirmed", map[string]string{"A/slot.cfg": a, "B/slot.cfg": b, "grub/grubenv": encode(Env(nil).Confirm(SlotB))},
			"booting slot B|B runs, failed= trial= tries=", Env{{"slot", "B"}}},
		{"confirmed is lost", map[string]string{"A/slot.cfg": a, "B/slot.cfg": string(garbage), "grub/grubenv": encode(Env(nil).Confirm(SlotB))},
			"booting slot B|slot B cannot be loaded|booting slot A|A runs, failed=B trial= tries=", Env{{"slot", "B"}, {"failed", "B"}}},
		{"no environment", map[string]string{"A/slot.cfg": a, "B/slot.cfg": b}, "booting slot A|A runs, failed= trial= tries=", nil},
		{"garbage in the environment", map[string]string{"B/slot.cfg": b, "grub/grubenv": strings.Repeat("\xff=\n", 341) + "#"},
			"slot A cannot be loaded|booting slot B|B runs, failed=A trial= tries=", nil},
		{"nothing", map[string]string{"A/slot.cfg": ""}, "slot A cannot be loaded|slot B cannot be loaded|no slot can be loaded", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := strings.Split(tt.lines, "|")
			disk := bootDisk(t, core, tt.files)
			got := boot(t, disk, "kiln: "+want[len(want)-1])
			if strings.Join(got, "|") != tt.lines {
				t.Errorf("it said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if tt.after == nil {
				return
			}
			after := environment(t, disk)
			if len(after) != len(tt.after) {
				t.Errorf("then the environment is %q, want %q", after, tt.after)
			}
			for _, v := range tt.after {
				if after.Get(v.Name) != v.Value {
					t.Errorf("then the environment is %q, want %q", after, tt.after)
				}
			}
		})
	}
}
