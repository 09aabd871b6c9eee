//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// kernelOf builds what a machine that starts a kernel directly needs, which only a
// BIOS does again when the machine restarts.
func kernelOf(t *testing.T, cmdline string) vm.Config {
	t.Helper()
	return kernelIn(t, oracle.Artifact(t, "KILN_BASE"), cmdline)
}

func kernelIn(t *testing.T, base, cmdline string) vm.Config {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	dir := filepath.Join(t.TempDir(), "pxe")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "metal", "--base", base, "--cache", t.TempDir(), "--format", "pxe", "--output", dir)
	return vm.Config{Firmware: vm.BIOS, Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initramfs"),
		Cmdline: "console=ttyS0 quiet panic=1 " + cmdline}
}

var (
	initramfsLine = regexp.MustCompile(`(^|\] )kiln: stage=initramfs `)
	softdogLine   = regexp.MustCompile(`softdog: Initiating system reboot`)
)

// A start that hangs is reset by the watchdog: in stage 1, in stage 2, which has
// taken over the watchdog, and when the node is up and PID 1 is stuck.
func TestWatchdog(t *testing.T) {
	for _, stage := range []string{"layers", "mounts", "watch"} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			c := kernelOf(t, "kiln.disk=none kiln.watchdog=20 kiln.hang="+stage)
			c.Restart = true
			ctx, m := start(t, c)
			for i, want := range []*regexp.Regexp{
				initramfsLine,
				regexp.MustCompile(`kiln: note text="kiln.hang=` + stage + `: the start stops here, and nothing keeps the watchdog alive"`),
				softdogLine,
				initramfsLine,
			} {
				line, err := m.Wait(ctx, want)
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					isWatched(t, line, "20")
				}
			}
			lines := milestones(t, m.Console())
			at := slices.IndexFunc(lines, func(l milestone) bool { return l.word == "note" })
			if up := slices.IndexFunc(lines, func(l milestone) bool { return l.word == "ready" }); up >= 0 != (stage == "watch") {
				t.Errorf("ready is line %d", up)
			}
			if stage != "watch" && stages(lines[:at])[at-1] == stage {
				t.Errorf("stage %s is done", stage)
			}
		})
	}
}

// isWatched wants a milestone to name the kernel's watchdog.
func isWatched(t *testing.T, line, timeout string) {
	t.Helper()
	l, _, err := parseMilestone(line)
	if err != nil || l.fields["watchdog"] != "Software Watchdog" || l.fields["timeout"] != timeout {
		t.Errorf("%s: %v, want watchdog=\"Software Watchdog\" timeout=%s", line, err, timeout)
	}
}

// A node that is up stays, much longer than its watchdog waits, and turns off.
// The kernel never says that a watchdog was left alone.
func TestWatchdogAlive(t *testing.T) {
	t.Parallel()
	c := kernelOf(t, "kiln.disk=none kiln.watchdog=20")
	c.Restart = true
	ctx, m := start(t, c)
	for _, stage := range []string{"initramfs", "mounts"} {
		line, err := m.Wait(ctx, regexp.MustCompile(`(^|\] )kiln: stage=`+stage+` `))
		if err != nil {
			t.Fatal(err)
		}
		isWatched(t, line, "20")
	}
	ready(t, ctx, m)
	time.Sleep(50 * time.Second)
	shutdown(t, ctx, m)
	if out := m.Console(); len(initramfsLine.FindAllString(out, -1)) > 1 || strings.Contains(out, "watchdog did not stop") {
		t.Error("the machine was reset, or the watchdog left alone")
	}
}

var dataLabels = []string{"STATE", "EPHEMERAL"}

// inFile is how e2fsprogs names a file system within a file.
func inFile(t *testing.T, disk, label string) string {
	t.Helper()
	return fmt.Sprintf("%s?offset=%d", disk, readTable(t, disk, 512).find(t, label).start)
}

// plant puts a file into STATE and EPHEMERAL, and a configuration into STATE.
func plant(t *testing.T, disk string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "planted")
	if err := os.WriteFile(file, []byte("planted\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, label := range dataLabels {
		run(t, oracle.Tool(t, "debugfs"), "-w", "-R", "write "+file+" planted", inFile(t, disk, label))
	}
	run(t, oracle.Tool(t, "debugfs"), "-w", "-R", "write "+file+" config.yaml", inFile(t, disk, "STATE"))
	planted(t, disk, dataLabels...)
}

// planted wants the file to be in these partitions and no others, and all to be
// sound.
func planted(t *testing.T, disk string, labels ...string) {
	t.Helper()
	table := readTable(t, disk, 512)
	for _, label := range dataLabels {
		out := run(t, oracle.Tool(t, "debugfs"), "-R", "ls -p /", inFile(t, disk, label))
		if has := strings.Contains(out, "/planted/"); has != slices.Contains(labels, label) || !strings.Contains(out, "/lost+found/") {
			t.Errorf("%s has the file: %v\n%s", label, has, out)
		}
		run(t, oracle.Tool(t, "e2fsck"), "-fn", carve(t, disk, table.find(t, label)))
	}
}

// super returns what identifies a file system, and what it was made with.
func super(t *testing.T, disk, label string) (uuid, made string) {
	t.Helper()
	part := carve(t, disk, readTable(t, disk, 512).find(t, label))
	for line := range strings.Lines(run(t, oracle.Tool(t, "dumpe2fs"), "-h", part)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Filesystem UUID":
			uuid = strings.TrimSpace(value)
		case "Filesystem volume name", "Filesystem features", "Filesystem flags", "Default mount options", "Errors behavior", "Inode count",
			"Block count", "Reserved block count", "Block size", "Inodes per group", "Inode size", "Flex block group size", "Total journal size":
			made += line
		}
	}
	return uuid, made
}

// restart starts a machine, turns it off again, and returns what it has printed.
func restart(t *testing.T, c vm.Config) (up milestone, lines []milestone) {
	t.Helper()
	ctx, m := start(t, c)
	up = ready(t, ctx, m)
	shutdown(t, ctx, m)
	m.Stop()
	return up, milestones(t, m.Console())
}

// resets returns what was erased, and the notes before.
func resets(lines []milestone) (erased []string, notes string) {
	for _, l := range lines {
		switch {
		case l.word == "note":
			notes += l.fields["text"] + "\n"
		case l.fields["stage"] == "reset":
			erased = append(erased, l.fields["erased"])
		}
	}
	return erased, notes
}

// What META asks for is erased once.
func TestResetByMeta(t *testing.T) {
	t.Parallel()
	b, disk := newBench(t), copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	uuids, made := map[string]string{}, map[string]string{}
	for _, label := range dataLabels {
		uuids[label], made[label] = super(t, disk, label)
	}
	plant(t, disk)
	b.succeeds(t, "meta", "set", disk, "reset-request=all", "user-1=stays")

	up, lines := restart(t, vm.Config{Image: disk})
	erased, notes := resets(lines)
	if !slices.Equal(erased, []string{"all"}) || !strings.Contains(notes, "disk vda: erasing all, with the machine configuration and the identity on STATE, as META asks\n") {
		t.Errorf("erased %v, notes\n%s", erased, notes)
	}
	if up.fields["config"] != "none" {
		t.Errorf("ready with config=%s, want none", up.fields["config"])
	}
	planted(t, disk)
	for _, label := range dataLabels {
		if uuid, now := super(t, disk, label); uuid == uuids[label] || now != made[label] {
			t.Errorf("%s has UUID %s, had %s, and is\n%s\nwas\n%s", label, uuid, uuids[label], now, made[label])
		}
	}
	if got, want := b.succeeds(t, "meta", "list", disk), "KEY   NAME    BYTES  VALUE\n0x0c  user-1  5      \"stays\"\n"; got != want {
		t.Errorf("META is\n%s\nwant\n%s", got, want)
	}

	plant(t, disk)
	_, lines = restart(t, vm.Config{Image: disk})
	if erased, notes := resets(lines); len(erased) > 0 || strings.Contains(notes, "erasing") {
		t.Errorf("at the second start: erased %v, notes\n%s", erased, notes)
	}
	planted(t, disk, dataLabels...)
}

// The kernel argument erases what it names; what it does not understand, or META
// has that is no request, erases nothing. The node comes up without a watchdog, too.
func TestResetByArgument(t *testing.T) {
	full(t)
	t.Parallel()
	b, disk := newBench(t), copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	plant(t, disk)
	b.succeeds(t, "meta", "set", disk, "reset-request=everything")
	c := kernelOf(t, "kiln.watchdog=off kiln.reset=EPHEMERAL")
	c.Disks = []string{disk}
	_, lines := restart(t, c)
	erased, notes := resets(lines)
	for _, want := range []string{
		`kernel argument kiln.reset: invalid request to reset "EPHEMERAL": want ephemeral, state or all; it erases nothing`,
		`disk vda: META 0xf2 (reset-request): invalid request to reset "everything": want ephemeral, state or all; META erases nothing`,
	} {
		if len(erased) > 0 || !strings.Contains(notes, want+"\n") {
			t.Errorf("erased %v, notes\n%s\nwant %s", erased, notes, want)
		}
	}
	if lines[0].fields["stage"] != "initramfs" || lines[0].fields["watchdog"] != "none" {
		t.Errorf("the first line is %v, want watchdog=none", lines[0])
	}
	planted(t, disk, dataLabels...)

	c.Cmdline = strings.Replace(c.Cmdline, "EPHEMERAL", "ephemeral", 1)
	up, lines := restart(t, c)
	if erased, notes := resets(lines); !slices.Equal(erased, []string{"ephemeral"}) || !strings.Contains(notes, "disk vda: erasing ephemeral, as the kernel argument kiln.reset asks, at each start with it\n") {
		t.Errorf("erased %v, notes\n%s", erased, notes)
	}
	if up.fields["config"] != "state" {
		t.Errorf("ready with config=%s, want state", up.fields["config"])
	}
	planted(t, disk, "STATE")
	if got := b.succeeds(t, "meta", "list", disk); got != "KEY  NAME  BYTES  VALUE\n" {
		t.Errorf("META is\n%s", got)
	}
}
