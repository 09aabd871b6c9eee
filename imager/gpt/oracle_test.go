package gpt

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// run returns what a program prints; it must exit with 0.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// complaint is what sgdisk says, with an exit status of 0, when something is
// wrong, even if it then says that there are no problems.
var complaint = regexp.MustCompile(`(?i)caution|warning|problem|creating|invalid|error|corrupt`)

func sgdiskVerify(t testing.TB, dev string) error {
	out := run(t, oracle.Tool(t, "sgdisk"), "-v", dev)
	rest := strings.Replace(out, "No problems found", "", 1)
	if rest == out || complaint.MatchString(rest) {
		return fmt.Errorf("sgdisk -v: %s", out)
	}
	return nil
}

// judge lets sgdisk and parted look at a disk, a file or a device.
func judge(t *testing.T, tab *Table, dev string) {
	t.Helper()
	if err := sgdiskVerify(t, dev); err != nil {
		t.Error(err)
	}
	sgdisk, parted := oracle.Tool(t, "sgdisk"), oracle.Tool(t, "parted")
	list := run(t, sgdisk, "-p", dev)
	for _, want := range []string{
		fmt.Sprintf("%d sectors", tab.Size/tab.SectorSize),
		"Disk identifier (GUID): " + strings.ToUpper(tab.DiskID.String()),
		fmt.Sprintf("First usable sector is %d, last usable sector is %d", 2+tableBytes/tab.SectorSize, (tab.Size-tableBytes)/tab.SectorSize-2),
		fmt.Sprintf("Partitions will be aligned on %d-sector boundaries", mib/tab.SectorSize),
	} {
		if !strings.Contains(list, want) {
			t.Errorf("sgdisk -p does not say %q:\n%s", want, list)
		}
	}
	for i, p := range tab.Partitions {
		info := run(t, sgdisk, "-i", fmt.Sprint(i+1), dev)
		for _, want := range []string{
			"Partition GUID code: " + strings.ToUpper(p.Type.String()),
			"Partition unique GUID: " + strings.ToUpper(p.ID.String()),
			fmt.Sprintf("First sector: %d ", p.Start/tab.SectorSize),
			fmt.Sprintf("Last sector: %d ", p.End()/tab.SectorSize-1),
			fmt.Sprintf("Attribute flags: %016X", p.Attributes),
			fmt.Sprintf("Partition name: '%s'", p.Name),
		} {
			if !strings.Contains(info, want) {
				t.Errorf("sgdisk -i %d does not say %q:\n%s", i+1, want, info)
			}
		}
	}
	list = run(t, parted, "-s", "-m", dev, "unit", "B", "print")
	want := fmt.Sprintf(`:%dB:[a-z]+:%d:\d+:gpt:[^:]*:;\n`, tab.Size, tab.SectorSize)
	for i, p := range tab.Partitions {
		flags := map[GUID]string{EFISystem: "boot, esp", BIOSBoot: "bios_grub, legacy_boot"}[p.Type]
		want += fmt.Sprintf("%d:%dB:%dB:%dB:[^:]*:%s:%s;\n", i+1, p.Start, p.End()-1, p.Size, regexp.QuoteMeta(p.Name), flags)
	}
	if !regexp.MustCompile(want).MatchString(list) {
		t.Errorf("parted prints\n%swant\n%s", list, want)
	}
}

func TestSgdiskParted(t *testing.T) {
	tab := table(512)
	name := writeImage(t, build(t, tab))
	judge(t, tab, name)

	// The judge must be able to say no.
	b := image(t, tab)
	for _, at := range []int{600, 1100, len(b) - 500, len(b) - 512 - 30} {
		m := extent.New(tab.Size)
		bad := append([]byte(nil), b...)
		bad[at] ^= 1
		if err := m.PutBytes(0, bad); err != nil {
			t.Fatal(err)
		}
		if sgdiskVerify(t, writeImage(t, m)) == nil {
			t.Errorf("sgdisk does not mind byte %d", at)
		}
	}
}

func TestSfdisk(t *testing.T) {
	sfdisk := oracle.Tool(t, "sfdisk")
	tab := table(512)
	name := writeImage(t, build(t, tab))
	if out := run(t, sfdisk, "--verify", name); !strings.Contains(out, "No errors detected.") {
		t.Errorf("sfdisk --verify: %s", out)
	}
	out := run(t, sfdisk, "-d", name)
	for _, want := range []string{
		"label: gpt\n", "label-id: " + strings.ToUpper(tab.DiskID.String()), "unit: sectors\n",
		"first-lba: 34\n", "last-lba: 65502\n", "sector-size: 512\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("sfdisk -d does not say %q:\n%s", want, out)
		}
	}
	for i, p := range tab.Partitions {
		want := fmt.Sprintf(`disk.raw%d : start=\s*%d, size=\s*%d, type=%s, uuid=%s, name="`, i+1, p.Start/512, p.Size/512,
			strings.ToUpper(p.Type.String()), strings.ToUpper(p.ID.String()))
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("sfdisk -d does not say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(out, `attrs="LegacyBIOSBootable"`) {
		t.Errorf("sfdisk -d does not know the attribute:\n%s", out)
	}
}

// TestReadSgdisk reads what sgdisk writes.
func TestReadSgdisk(t *testing.T) {
	sgdisk := oracle.Tool(t, "sgdisk")
	name := writeImage(t, extent.New(64*mib))
	run(t, sgdisk, "-U", id(9).String(), "-a", "1", "-n", "2:34:2047", "-t", "2:ef02", "-c", "2:BIOS", "-A", "2:set:2", "-u", "2:"+id(2).String(),
		"-n", "1:2048:122879", "-t", "1:8300", "-c", "1:grüße", "-u", "1:"+id(1).String(), name)
	f, err := extent.File(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(f, f.Size())
	if err != nil || got.Damaged != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	want := []Partition{
		{Type: LinuxFilesystem, ID: id(1), Name: "grüße", Start: mib, Size: 59 * mib},
		{Type: BIOSBoot, ID: id(2), Name: "BIOS", Start: 34 * 512, Size: 2014 * 512, Attributes: LegacyBIOSBootable},
	}
	if fmt.Sprint(got.Partitions) != fmt.Sprint(want) || got.DiskID != id(9) {
		t.Errorf("got %+v, want %+v", got.Partitions, want)
	}
	if err := sgdiskVerify(t, writeImage(t, build(t, got))); err != nil {
		t.Errorf("written again: %v", err)
	}
}

// TestLoop shows both sector sizes to the tools as block devices have them.
func TestLoop(t *testing.T) {
	oracle.Root(t)
	for _, sector := range []int64{512, 4096} {
		tab := table(sector)
		judge(t, tab, loop(t, writeImage(t, build(t, tab)), sector))
	}
}

// loop returns a loop device over the file; it waits for one to be free.
func loop(t *testing.T, name string, sector int64) string {
	losetup := oracle.Tool(t, "losetup")
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := exec.Command(losetup, "-f", "--show", "-b", fmt.Sprint(sector), name).CombinedOutput()
		if err == nil {
			dev := strings.TrimSpace(string(out))
			t.Cleanup(func() { run(t, losetup, "-d", dev) })
			return dev
		}
		if time.Now().After(deadline) {
			t.Fatalf("losetup: %v %s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
