//go:build linux

package test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/uki"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/sign"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestMain is the init of the machines of TestModuleSignatures, as well.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		asInit()
	}
	if relay() {
		return
	}
	os.Exit(m.Run())
}

// asInit is what PID 1 does there: it prints what the kernel makes of each module
// in the initramfs.
func asInit() {
	if _, err := os.Stat("/" + containersRootFS); err == nil {
		runContainers()
	}
	_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	_ = unix.Mount("securityfs", "/sys/kernel/security", "securityfs", 0, "")
	lockdown, _ := os.ReadFile("/sys/kernel/security/lockdown")
	fmt.Printf("guest: lockdown %s", lockdown)
	modules, _ := filepath.Glob("/modules/*")
	for _, p := range modules {
		fmt.Printf("guest: %s %s\n", filepath.Base(p), insert(p))
	}
	fmt.Println("guest: end")
	time.Sleep(100 * time.Millisecond) // the console is slow
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// insert loads the module dummy and, if that works, removes it. It returns
// "loads" or the kernel's error.
func insert(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	flags := 0
	if strings.HasSuffix(file, ".xz") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	case unix.DeleteModule("dummy", 0) != nil:
		return "loads, but cannot be removed"
	}
	return "loads"
}

var (
	guestLine = regexp.MustCompile(`^guest: (\S+) (.*)$`)
	guestEnd  = regexp.MustCompile(`^guest: end`)
)

// What a distribution's kernel makes of the signatures of modules: the table in
// docs/signing.md is what this asserts. The certificates of user and ecdsa are
// in UEFI's db, that of mok in MokListRT, and other's nowhere.
func TestModuleSignatures(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	k := testKernel(t)
	firmware, user, other, mok := signer(t, "Kiln Firmware"), signer(t, "Kiln User"), signer(t, "Kiln Other"), signer(t, "Kiln MOK")
	ec := ecdsaSigner(t, "Kiln ECDSA")
	sha512 := *user
	sha512.Hash = crypto.SHA512

	compressed, plain := k.module(t, "dummy.ko.xz")
	files := map[string][]byte{"distribution.ko.xz": compressed, "unsigned.ko": plain}
	for name, s := range map[string]*sign.Signer{"user.ko": user, "sha512.ko": &sha512, "ecdsa.ko": ec, "other.ko": other, "mok.ko": mok} {
		signed, err := s.Sign(plain)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = signed
	}
	files["changed.ko"] = bytes.Replace(files["user.ko"], []byte("Dummy netdevice"), []byte("dummy netdevice"), 1)
	initrd := initramfs(t, files)

	// all are the results of modules; the distribution's own loads everywhere.
	all := func(user, mok, changed, other, unsigned string) map[string]string {
		return map[string]string{"distribution.ko.xz": "loads", "user.ko": user, "sha512.ko": user, "ecdsa.ko": user,
			"mok.ko": mok, "changed.ko": changed, "other.ko": other, "unsigned.ko": unsigned}
	}
	const no = "EKEYREJECTED"
	db := variable{imageSecurity, "db", authAttributes, signatureLists(firmware.Certificate, user.Certificate, ec.Certificate)}
	list := variable{shimLock, "MokListRT", plainAttributes, signatureLists(mok.Certificate)}
	owner := signatureLists(firmware.Certificate)
	enrolled := []variable{db, list, {globalVariable, "KEK", authAttributes, owner}, {globalVariable, "PK", authAttributes, owner}}
	for _, tc := range []struct {
		name     string
		vars     []variable // nil is BIOS
		cmdline  string
		lockdown string
		want     map[string]string
		says     []string
	}{
		{"secure boot", enrolled, "", "integrity", all("loads", "loads", no, no, no), []string{
			"secureboot: Secure boot enabled",
			"integrity: Loading X.509 certificate: UEFI:db\n", "integrity: Loaded X.509 cert 'Kiln User: ",
			"integrity: Loading X.509 certificate: UEFI:MokListRT\n", "integrity: Loaded X.509 cert 'Kiln MOK: ",
			"Loading of module with unavailable key is rejected", "Loading of unsigned module is rejected",
		}},
		// Without a platform key Secure Boot is off, and MokListRT is not read.
		{"uefi enforced", []variable{db, list}, "module.sig_enforce=1", "none", all("loads", no, no, no, no), nil},
		{"uefi lockdown", []variable{db, list}, "lockdown=integrity", "integrity", all("loads", "EPERM", no, "EPERM", "EPERM"), []string{
			"Lockdown: init: unsigned module loading is restricted",
		}},
		{"bios", nil, "", "none", all("loads", "loads", "loads", "loads", "loads"), []string{
			"dummy: module verification failed: signature and/or required key missing - tainting kernel",
		}},
		{"bios enforced", nil, "module.sig_enforce=1", "none", all(no, no, no, no, no), nil},
		{"bios lockdown", nil, "lockdown=integrity", "integrity", all("EPERM", "EPERM", "EPERM", "EPERM", "EPERM"), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := vm.Config{Memory: 512}
			cmdline := "console=ttyS0 panic=-1 " + tc.cmdline
			if tc.vars != nil {
				c.Image, c.Vars = k.disk(t, initrd, cmdline, firmware), writeVars(t, tc.vars)
			} else {
				c.Firmware, c.Cmdline = vm.BIOS, cmdline
				c.Kernel, c.Initrd = save(t, "vmlinuz", contents(t, k.image)), save(t, "initrd", contents(t, initrd))
			}
			ctx, m := start(t, c)
			if _, err := m.Wait(ctx, guestEnd); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			console := strings.ReplaceAll(m.Console(), "\r\n", "\n")
			for line := range strings.Lines(console) {
				if g := guestLine.FindStringSubmatch(strings.TrimSuffix(line, "\n")); g != nil {
					got[g[1]] = g[2]
				}
			}
			if lockdown := got["lockdown"]; !strings.Contains(lockdown, "["+tc.lockdown+"]") {
				t.Errorf("lockdown is %q, want %s", lockdown, tc.lockdown)
			}
			for _, name := range slices.Sorted(maps.Keys(tc.want)) {
				if got[name] != tc.want[name] {
					t.Errorf("%s: %s, want %s", name, got[name], tc.want[name])
				}
			}
			for _, want := range tc.says {
				if !strings.Contains(console, want) {
					t.Errorf("the kernel does not say %q", want)
				}
			}
		})
	}
}

// distribution is a kernel, and systemd-stub to start it.
type distribution struct {
	image, stub extent.Source
	modules     *tree.Tree
}

func testKernel(t *testing.T) *distribution {
	t.Helper()
	dir := filepath.SplitList(os.Getenv("KILN_TEST_KERNELS"))
	if len(dir) == 0 {
		t.Skip("SKIPPED: KILN_TEST_KERNELS is not set to directories of unpacked kernel packages")
	}
	k, err := kernel.Import(t.Context(), dir[0])
	if err != nil {
		t.Fatal(err)
	}
	pattern := filepath.Join(oracle.Artifact(t, "KILN_TEST_DEBS"), "systemd-boot-efi_*_amd64.deb")
	debs, err := filepath.Glob(pattern)
	if err != nil || len(debs) == 0 {
		t.Fatalf("no %s, %v", pattern, err)
	}
	p, err := deb.Open(debs[0])
	if err != nil {
		t.Fatal(err)
	}
	const stub = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	files, err := p.Tree(t.Context(), func(name string) bool { return name == stub })
	if err != nil {
		t.Fatal(err)
	}
	return &distribution{k.Vmlinuz, files.Lookup(stub).Content, k.Modules}
}

// module returns one of the kernel's, as it is and without its signature.
func (k *distribution) module(t *testing.T, file string) (compressed, plain []byte) {
	t.Helper()
	for name, ino := range k.modules.All() {
		if path.Base(name) == file {
			compressed = contents(t, ino.Content)
		}
	}
	elf, err := module.Decompress(file, compressed, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	plain, sig, err := sign.Split(elf)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is signed by %s", file, sig)
	return compressed, plain
}

// disk writes a disk with nothing but a unified kernel image that is signed.
func (k *distribution) disk(t *testing.T, initrd extent.Source, cmdline string, s *sign.Signer) string {
	t.Helper()
	image, err := uki.Build(contents(t, k.stub), []uki.Section{
		{Name: ".osrel", Content: extent.Bytes([]byte("ID=test\n"))},
		{Name: ".cmdline", Content: extent.Bytes([]byte(cmdline))},
		{Name: ".initrd", Content: initrd},
		{Name: ".linux", Content: k.image},
	})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	signed := filepath.Join(t.TempDir(), "signed.efi")
	run(t, oracle.Tool(t, "sbsign"), "--output", signed,
		"--key", save(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		"--cert", save(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw})),
		save(t, "unsigned.efi", contents(t, image)))
	content, err := extent.File(signed)
	if err != nil {
		t.Fatal(err)
	}
	esp := tree.New()
	if err := esp.MkdirAll("EFI/BOOT", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := esp.Add("EFI/BOOT/BOOTX64.EFI", &tree.Inode{Mode: 0o644, Content: content}); err != nil {
		t.Fatal(err)
	}
	// Firmware takes a disk that is a file system, too.
	disk, err := fat.Build(esp, fat.Options{Size: 128 << 20, SectorSize: 512, Label: "EFI"})
	if err != nil {
		t.Fatal(err)
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

// initramfs has this program as its init, and the modules.
func initramfs(t *testing.T, modules map[string][]byte) extent.Source {
	t.Helper()
	files := map[string]tree.Inode{}
	for name, data := range modules {
		files["modules/"+name] = guest.File(data)
	}
	return guest.Initramfs(t, files)
}

var certificatesFrom = time.Date(2025, 11, 21, 0, 0, 0, 0, time.UTC)

// signer returns a new key as 'kiln key generate' makes it.
func signer(t *testing.T, name string) *sign.Signer {
	t.Helper()
	s, err := sign.Generate(name, 2048, certificatesFrom, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ecdsaSigner returns a new key of the other kind, with a certificate that has
// nothing but its name.
func ecdsaSigner(t *testing.T, name string) *sign.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte(name),
		NotBefore: certificatesFrom, NotAfter: certificatesFrom}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &sign.Signer{Key: key, Certificate: cert}
}

func contents(t testing.TB, src tree.Content) []byte {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func save(t testing.TB, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
