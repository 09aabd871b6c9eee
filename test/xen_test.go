//go:build linux

package test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/test/dom0"
)

// buildXen builds the profile xen and returns the disk.
func buildXen(t *testing.T, args ...string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "xen.raw")
	run(t, oracle.Artifact(t, "KILN_BIN"), append([]string{"build", "xen", "--base", oracle.Artifact(t, "KILN_BASE"),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--cache", t.TempDir(), "--output", disk}, args...)...)
	return disk
}

// bootAssets builds what is started without a boot loader.
func bootAssets(t *testing.T) (kernel, initramfs, cmdline string) {
	t.Helper()
	dir := t.TempDir()
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "xen", "--base", oracle.Artifact(t, "KILN_BASE"),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--cache", t.TempDir(), "--format", "kernel,initramfs,cmdline", "--output", dir)
	one := func(pattern string) string {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %v, %v, want one", pattern, names, err)
		}
		return names[0]
	}
	return one("*.vmlinuz"), one("*.initramfs"), strings.TrimSpace(string(read(t, one("*.cmdline"))))
}

// vmlinux unpacks the kernel of a bzImage, the ELF file with Xen's notes. Offset
// and length are in its header (Documentation/arch/x86/boot.rst):
//
//	0x1f1 u8   setup sectors; the payload's offset counts from the sector after them
//	0x248 u32  offset of the payload
//	0x24c u32  its length; the last four bytes are how long it is unpacked
func vmlinux(t *testing.T, bzImage string) string {
	t.Helper()
	data := read(t, bzImage)
	at := (int(data[0x1f1])+1)*512 + int(binary.LittleEndian.Uint32(data[0x248:]))
	payload := data[at:][:binary.LittleEndian.Uint32(data[0x24c:])-4]
	r, err := zstd.NewReader(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return writeFrom(t, "vmlinux", r)
}

// writeFrom writes what r has to a file.
func writeFrom(t *testing.T, name string, r io.Reader) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		t.Fatal(err)
	}
	return file
}

// The kernel's entry point for PVH guests, which QEMU takes as Xen does.
func TestPVHEntry(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	bzImage, initramfs, cmdline := bootAssets(t)
	if !strings.Contains(cmdline, "console=hvc0") {
		t.Errorf("command line %q, want Xen's console hvc0", cmdline)
	}
	ctx, m := start(t, vm.Config{Firmware: vm.BIOS, Kernel: vmlinux(t, bzImage), Initrd: initramfs, Cmdline: cmdline + " console=ttyS0,115200"})
	up := ready(t, ctx, m)
	for key, want := range map[string]string{"disk": "none", "slot": "-", "state": "tmpfs"} {
		if got := up.fields[key]; got != want {
			t.Errorf("ready with %s=%s, want %s", key, got, want)
		}
	}
	loaded(t, up, "wireguard")
}

// The processors that QEMU emulates well enough: on one with more, PVH and HVM guests
// hang, and with SMAP the host's kernel fails.
const (
	withSVM    = "qemu64,+svm,+npt" // for PVH and HVM guests
	withoutSVM = "max,-smap"
)

// What a guest is in place of the HVM guest that the configuration describes.
var asPVH = []string{"type = \"hvm\"\n", "", "serial = \"pty\"\n", "", "\n#type = \"pvh\"\n#kernel = ", "\ntype = \"pvh\"\nkernel = "}

// withKernel is a guest of a type whose kernel is started without a boot loader.
func withKernel(kind, cmdline string) []string {
	return []string{"serial = \"pty\"\n", "", "type = \"hvm\"\n",
		fmt.Sprintf("type = %q\nkernel = \"/boot/vmlinuz\"\nramdisk = \"/boot/initramfs\"\ncmdline = %q\n", kind, cmdline)}
}

// A xenGuest is what xl starts on a Xen host.
type xenGuest struct {
	cpu     string   // of the host
	hvm     bool     // it is an HVM guest
	disk    string   // with FILE.xl.cfg beside it
	changes []string // to that: pairs of what is there and what is in its place
	files   map[string]extent.Source
	actions string // of xl, each as soon as the guest is up; the last is shutdown
}

// operate is what the operator does, with the disk that the host has as /dev/vda.
const operate = `ln -s /dev/vda "$(sed -n 's/^disk = .*target=\([^ "]*\)".*/\1/p' /guest.cfg)"
name=$(sed -n 's/^name = "\(.*\)"/\1/p' /guest.cfg)
if ! xl create /guest.cfg; then
	cat /var/log/xen/*
	exit
fi
last=0
for action in $ACTIONS; do
	until id=$(xl domid "$name" 2>/dev/null) && [ "$id" != $last ] && xenstore-exists "/local/domain/$id/console/tty"; do
		sleep 1
	done
	last=$id
	xl console -t pv "$name" </dev/null | while IFS= read -r line; do
		echo "$line"
		case $line in *"kiln: ready "*) xl "$action" "$name" ;; esac
	done
done
`

// boot starts a Xen host with the guest, and wants that to come up with its disk and
// to do what it is told to.
func (g xenGuest) boot(t *testing.T, want map[string]string) {
	t.Helper()
	config := string(read(t, g.disk+".xl.cfg"))
	for i := 0; i < len(g.changes); i += 2 {
		if strings.Count(config, g.changes[i]) != 1 {
			t.Fatalf("want one %q in\n%s", g.changes[i], config)
		}
		config = strings.Replace(config, g.changes[i], g.changes[i+1], 1)
	}
	// The host is small.
	config = regexp.MustCompile(`(?m)^memory = .*`).ReplaceAllString(config, "memory = 512")
	config = regexp.MustCompile(`(?m)^vcpus = .*`).ReplaceAllString(config, "vcpus = 1")

	debs, err := filepath.Glob(filepath.Join(oracle.Artifact(t, "KILN_TEST_XEN"), "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Import(context.Background(), genericKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	host := dom0.Host{Kernel: k, Packages: debs, HVM: g.hvm, Files: map[string]extent.Source{
		"guest.cfg": extent.Bytes([]byte(config)),
		"guest.sh":  extent.Bytes([]byte("ACTIONS='" + g.actions + "'\n" + operate)),
	}}
	maps.Copy(host.Files, g.files)
	initramfs, err := host.Build(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, m := startWithin(t, 30*time.Minute, vm.Config{
		// What GRUB for PVH does not find is no failure.
		Firmware: vm.BIOS, CPU: g.cpu, Memory: 2048, Disks: []string{g.disk}, Snapshot: true, Restart: true,
		Kernel:  writeFrom(t, "xen", hypervisor(t, debs)),
		Cmdline: "dom0_mem=832M com1=115200,8n1 console=com1 noreboot=1",
		Initrd: fmt.Sprintf("%s console=hvc0 quiet,%s", writeFrom(t, "vmlinuz", extent.Reader(k.Vmlinuz)),
			writeFrom(t, "dom0.cpio", extent.Reader(initramfs))),
	})
	theEnd := regexp.MustCompile(`^dom0: the end`)
	wait := func(until *regexp.Regexp) string {
		t.Helper()
		line, err := m.Wait(ctx, until, failedLine, theEnd)
		if err != nil {
			t.Fatal(err)
		}
		if !until.MatchString(line) {
			t.Fatalf("%s, want %s", line, until)
		}
		return line
	}
	for range strings.Fields(g.actions) {
		up, _, err := parseMilestone(wait(readyLine))
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range want {
			if got := up.fields[key]; got != want {
				t.Errorf("ready with %s=%s, want %s", key, got, want)
			}
		}
		loaded(t, up, "wireguard")
		wait(shutdownLine)
	}
	wait(theEnd)
}

// hypervisor returns Xen, the program.
func hypervisor(t *testing.T, debs []string) io.Reader {
	t.Helper()
	for _, file := range debs {
		if !strings.HasPrefix(filepath.Base(file), "xen-hypervisor-") {
			continue
		}
		p, err := deb.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		files, err := p.Tree(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, ino := range files.All() {
			if strings.HasPrefix(name, "boot/xen-") && strings.HasSuffix(name, ".gz") && !strings.Contains(name, "dbg") {
				r, err := gzip.NewReader(extent.Reader(ino.Content))
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
		}
	}
	t.Fatalf("no Xen in the packages %v", debs)
	return nil
}

// genericKernel returns the directory of a kernel that can be the host's, which
// the cloud kernel cannot.
func genericKernel(t *testing.T) string {
	t.Helper()
	list := os.Getenv("KILN_TEST_KERNELS")
	for _, dir := range filepath.SplitList(list) {
		if images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")); err == nil && len(images) == 1 && !strings.Contains(images[0], "-cloud-") {
			return dir
		}
	}
	t.Fatalf("KILN_TEST_KERNELS is %q, want a directory of an unpacked generic kernel among them; 'make test' sets it", list)
	return ""
}

// onXVDA is what a node says that has started from its disk.
var onXVDA = map[string]string{"disk": "xvda", "slot": "A", "state": "xvda5", "ephemeral": "xvda6", "firmware": "bios"}

// A disk and the configuration beside it as they are built, by GRUB for PVH.
func TestXenPVH(t *testing.T) {
	full(t)
	t.Parallel()
	xenGuest{cpu: withSVM, disk: buildXen(t), changes: asPVH, actions: "shutdown"}.boot(t, onXVDA)
}

// The other ways to start it, which take minutes. GRUB reads an HVM guest's disk
// slowly here, so that one has its layers on BOOT.
func TestXen(t *testing.T) {
	if testing.Short() || os.Getenv("KILN_TEST_FULL") != "1" {
		t.Skip("SKIPPED: boots machines for a quarter of an hour; 'make test-full' does, or KILN_TEST_FULL=1")
	}
	t.Parallel()
	vmlinuz, initramfs, cmdline := bootAssets(t)
	assets := map[string]extent.Source{"boot/vmlinuz": extent.Bytes(read(t, vmlinuz)), "boot/initramfs": extent.Bytes(read(t, initramfs))}
	withoutSlot := maps.Clone(onXVDA)
	withoutSlot["slot"] = "-"
	for name, c := range map[string]struct {
		xenGuest
		layers string
		want   map[string]string
	}{
		"HVM":             {xenGuest{cpu: withSVM, hvm: true, actions: "shutdown"}, "boot", onXVDA},
		"PVH with kernel": {xenGuest{cpu: withSVM, changes: withKernel("pvh", cmdline), files: assets, actions: "reboot shutdown"}, "ram", withoutSlot},
		"PV with kernel":  {xenGuest{cpu: withoutSVM, changes: withKernel("pv", cmdline), files: assets, actions: "shutdown"}, "ram", withoutSlot},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.disk = buildXen(t, "--set", "disk.layers="+c.layers)
			c.boot(t, c.want)
		})
	}
}

// What XCP-ng imports is the disk that the profile builds as raw, which starts.
func TestXCPng(t *testing.T) {
	dir := t.TempDir()
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "xcp-ng", "--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"),
		"--cache", t.TempDir(), "--format", "xva,raw", "--output", dir+"/")
	one := func(pattern string) string {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %v, %v, want one", pattern, names, err)
		}
		return names[0]
	}
	run(t, oracle.Tool(t, "tar"), "-xf", one("*.xva"), "-C", dir)
	back := filepath.Join(dir, "back")
	run(t, oracle.Tool(t, "xva-img"), "-p", "disk-export", one("Ref:*")+"/", back)
	if digest(t, back) != digest(t, one("*.raw")) {
		t.Error("unpacked it is another disk")
	}
}
