package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// arguments returns what c becomes, on one line.
func arguments(t *testing.T, c Config) string {
	t.Helper()
	c, a, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	f := files{serial: "socket,id=serial,fd=3", monitor: "socket,id=monitor,fd=4", code: "/fw/code.fd", vars: "/tmp/a,b/vars.fd"}
	return strings.Join(c.arguments(a, f), " ")
}

const (
	common = "-nodefaults -no-user-config -machine q35,i8042=off -accel tcg -cpu max -smp 1 -m 1024 -display none " +
		"-chardev socket,id=serial,fd=3 -serial chardev:serial -chardev socket,id=monitor,fd=4 -mon chardev=monitor,mode=control "
	devices = "-device virtio-rng-pci -netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net,romfile= "
	pflash  = "-drive if=pflash,unit=0,format=raw,readonly=on,file=/fw/code.fd -drive if=pflash,unit=1,format=raw,file=/tmp/a,,b/vars.fd "
	sectors = ",bootindex=0,logical_block_size=512,physical_block_size=512"
)

func TestArguments(t *testing.T) {
	for _, tc := range []struct {
		name string
		c    Config
		want string
	}{
		{"defaults", Config{Image: "metal.raw"}, common + devices + pflash +
			"-drive if=none,id=disk,format=raw,discard=unmap,file=metal.raw -device virtio-blk-pci,drive=disk" + sectors},
		{"BIOS has no flash", Config{Image: "metal.raw", Firmware: BIOS, Bus: AHCI, Snapshot: true}, common + devices +
			"-drive if=none,id=disk,format=raw,discard=unmap,file=metal.raw,snapshot=on -device ide-hd,bus=ide.0,drive=disk" + sectors},
		{"SCSI needs a controller", Config{Image: "a,b.qcow2", Format: "qcow2", Bus: VirtioSCSI}, common + devices + pflash +
			"-device virtio-scsi-pci,id=scsi -drive if=none,id=disk,format=qcow2,discard=unmap,file=a,,b.qcow2 -device scsi-hd,bus=scsi.0,drive=disk" + sectors},
		{"USB", Config{Image: "metal.raw", Bus: USB}, common + devices + pflash +
			"-device qemu-xhci,id=usb -drive if=none,id=disk,format=raw,discard=unmap,file=metal.raw -device usb-storage,bus=usb.0,drive=disk" + sectors},
		{"4096-byte sectors", Config{Image: "4k.raw", Bus: NVMe, SectorSize: 4096}, common + devices + pflash +
			"-drive if=none,id=disk,format=raw,discard=unmap,file=4k.raw -device nvme,serial=kiln,drive=disk,bootindex=0,logical_block_size=4096,physical_block_size=4096"},
		{"kernel", Config{Kernel: "vmlinuz", Initrd: "init.cpio", Cmdline: "console=ttyS0 quiet", Firmware: BIOS}, common + devices +
			"-kernel vmlinuz -initrd init.cpio -append console=ttyS0 quiet"},
		{"screen", Config{Kernel: "vmlinuz", Firmware: BIOS, Screen: true}, common + devices + "-device VGA -kernel vmlinuz -append "},
		{"another processor", Config{Kernel: "vmlinuz", Firmware: BIOS, CPU: "max,-smap"},
			strings.Replace(common, "-cpu max", "-cpu max,-smap", 1) + devices + "-kernel vmlinuz -append "},
		{"two processors", Config{Kernel: "vmlinuz", Firmware: BIOS, CPUs: 2},
			strings.Replace(common, "-smp 1", "-smp 2", 1) + devices + "-kernel vmlinuz -append "},
		{"a network with a server", Config{Kernel: "vmlinuz", Firmware: BIOS, Network: "169.254.169.0/24", Forward: map[int]int{1: 2},
			Serve: map[string]string{"169.254.169.254:80": "relay a,b"}, More: []string{"-rtc", "base=1970-01-01"}},
			common + strings.Replace(devices, "restrict=on", "restrict=on,hostfwd=tcp:127.0.0.1:1-:2,net=169.254.169.0/24,guestfwd=tcp:169.254.169.254:80-cmd:relay a,,b", 1) +
				"-kernel vmlinuz -append  -rtc base=1970-01-01"},
		{"a machine with a name", Config{Kernel: "vmlinuz", Firmware: BIOS, UUID: "00112233-4455-6677-8899-aabbccddeeff"}, common + devices +
			"-uuid 00112233-4455-6677-8899-aabbccddeeff -kernel vmlinuz -append "},
		{"more disks", Config{Kernel: "vmlinuz", Firmware: BIOS, Disks: []string{"x.raw", "y.raw"}, Snapshot: true}, common + devices +
			"-drive if=none,id=extra0,format=raw,discard=unmap,file=x.raw,snapshot=on -device virtio-blk-pci,drive=extra0 " +
			"-drive if=none,id=extra1,format=raw,discard=unmap,file=y.raw,snapshot=on -device virtio-blk-pci,drive=extra1 -kernel vmlinuz -append "},
		{"an accelerator's own processor", Config{Image: "metal.raw", Firmware: BIOS, Accel: "kvm", Memory: 512},
			strings.NewReplacer("-accel tcg -cpu max", "-accel kvm -cpu host", "-m 1024", "-m 512").Replace(common) + devices +
				"-drive if=none,id=disk,format=raw,discard=unmap,file=metal.raw -device virtio-blk-pci,drive=disk" + sectors},
		{"arm64", Config{Image: "metal.iso", Arch: "arm64", Bus: CDROM},
			strings.NewReplacer("q35,i8042=off", "virt", "-cpu max", "-cpu max,pauth-impdef=on").Replace(common) +
				"-boot menu=on,splash-time=0 " + devices + pflash +
				"-device virtio-scsi-pci,id=scsi -drive if=none,id=disk,format=raw,discard=unmap,file=metal.iso,readonly=on -device scsi-cd,bus=scsi.0,drive=disk,bootindex=0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := arguments(t, tc.c); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	for _, tc := range []struct {
		c    Config
		want string
	}{
		{Config{}, "nothing to boot, want an image, a kernel or a directory to boot from the network"},
		{Config{Image: "x", Cmdline: "quiet"}, "an initramfs or a command line, but no kernel to give it to"},
		{Config{Image: "x", Arch: "riscv64"}, `architecture "riscv64", want amd64 or arm64`},
		{Config{Image: "x", Firmware: "coreboot"}, `firmware "coreboot", want bios or uefi`},
		{Config{Image: "x", Firmware: BIOS, Arch: "arm64"}, "arm64 machines have no BIOS, want firmware uefi"},
		{Config{Image: "x", Bus: "floppy"}, `bus "floppy", want one of those that amd64 machines boot from: [virtio-blk virtio-scsi ahci nvme usb cdrom]`},
		{Config{Image: "x", Bus: AHCI, Arch: "arm64"}, `bus "ahci", want one of those that arm64 machines boot from: [virtio-blk virtio-scsi nvme usb cdrom]`},
		{Config{Netboot: "x", Arch: "arm64"}, "QEMU has no iPXE for arm64 machines; boot the kernel and the initramfs themselves"},
		{Config{Image: "x", Arch: "arm64", Screen: true}, "arm64 machines have no VGA"},
		{Config{Image: "x", SectorSize: 520}, "sectors of 520 bytes, want 512 or 4096"},
		{Config{Image: "x", SectorSize: 4096, Bus: AHCI}, "sectors of 4096 bytes: QEMU's ahci disks and every BIOS have 512"},
		{Config{Image: "x", SectorSize: 4096, Firmware: BIOS}, "sectors of 4096 bytes: QEMU's ahci disks and every BIOS have 512"},
		{Config{Image: "x", Memory: -1}, "-1 MiB of memory"},
		{Config{Image: "x", CPUs: -1}, "-1 processors"},
	} {
		_, err := Start(t.Context(), tc.c, nil)
		if !errors.Is(err, ErrConfig) || err.Error() != "virtual machine: "+tc.want {
			t.Errorf("%+v: %v, want %s", tc.c, err, tc.want)
		}
	}
}

func TestBusesOfEveryArchitecture(t *testing.T) {
	for name, a := range archs() {
		if len(a.disks) != len(a.buses()) {
			t.Errorf("%s has %d buses, of which %v are known", name, len(a.disks), a.buses())
		}
		for _, b := range []Bus{VirtioBlk, VirtioSCSI, NVMe, USB, CDROM} {
			if !slices.Contains(a.buses(), b) {
				t.Errorf("%s has no %s disks", name, b)
			}
		}
	}
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Start(t.Context(), Config{Image: "x"}, nil)
	if want := "qemu-system-x86_64: not installed; it is in the package qemu-system-x86"; !errors.Is(err, ErrMissing) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	err = Run(t.Context(), Config{Image: "x", Arch: "arm64"})
	if want := "qemu-system-aarch64: not installed; it is in the package qemu-system-arm"; !errors.Is(err, ErrMissing) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestFirmware(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if content != "" {
			if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	a := arch{firmwarePackage: "ovmf", firmware: []firmware{
		{file("CODE_4M.fd", "code"), file("VARS_4M.fd", "")}, // the variables are missing
		{file("CODE.fd", "code"), file("VARS.fd", "vars")},
	}}
	f, err := a.uefi()
	if err != nil || f != a.firmware[1] {
		t.Errorf("%v, %v, want the one that is complete", f, err)
	}
	a.firmware = a.firmware[:1]
	_, err = a.uefi()
	want := "UEFI firmware: not installed: no " + dir + "/CODE_4M.fd; it is in the package ovmf"
	if !errors.Is(err, ErrMissing) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := copyVars(filepath.Join(dir, "copy"), f.vars); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "copy")); string(got) != "vars" {
		t.Errorf("copy is %q", got)
	}
}

// The enforcing firmwares would refuse an image that is not signed.
func TestFirmwareDoesNotEnforceSecureBoot(t *testing.T) {
	for _, f := range slices.Concat(ovmf(), aavmf()) {
		for _, s := range []string{"secboot", ".ms.", "snakeoil"} {
			if strings.Contains(f.code+f.vars, s) {
				t.Errorf("%v", f)
			}
		}
	}
}
