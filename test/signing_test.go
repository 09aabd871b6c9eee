//go:build linux

package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/sign"
)

// enforce is the argument with which the kernel loads signed modules only.
const enforce = "module.sig_enforce=1"

// succeeds runs kiln and returns what it prints.
func (b *bench) succeeds(t *testing.T, args ...string) string {
	t.Helper()
	cmd := b.command(append(args, "--progress", "none")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kiln %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// checkFails wants 'kiln extension check' to print findings with all the words, and
// to exit as refused.
func (b *bench) checkFails(t *testing.T, words []string, args ...string) {
	t.Helper()
	args = append([]string{"extension", "check", "--base", b.base}, args...)
	out, err := b.command(args...).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != refused || !strings.Contains(string(exit.Stderr), "kiln: refused: 1 errors") {
		t.Errorf("kiln %s: %v, want exit code %d", strings.Join(args, " "), err, refused)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			t.Errorf("kiln %s: no %q in\n%s", strings.Join(args, " "), w, out)
		}
	}
}

// signing is keys, a module of the distribution without its signature, and
// extensions with it.
type signing struct {
	one, two         string // directories of keys
	ko               string
	signed, unsigned string // extensions
}

func newSigning(t *testing.T, b *bench) *signing {
	t.Helper()
	dir := t.TempDir()
	s := &signing{one: filepath.Join(dir, "one"), two: filepath.Join(dir, "two"), signed: filepath.Join(dir, "signed.oci"), unsigned: filepath.Join(dir, "unsigned.oci")}
	for name, key := range map[string]string{"Key One": s.one, "Key Two": s.two} {
		if out := b.succeeds(t, "key", "generate", "--name", name, "--output", key); out != key+"\n" {
			t.Errorf("key generate prints %q, want %s", out, key)
		}
	}
	_, plain := testKernel(t).module(t, "brd.ko.xz")
	s.ko = b.file(t, "brd.ko", plain)
	b.succeeds(t, s.build(b, s.signed, "--sign-key", filepath.Join(s.one, "key.pem"), "--sign-cert", filepath.Join(s.one, "cert.pem"))...)
	b.succeeds(t, s.build(b, s.unsigned)...)
	return s
}

// build is the command that makes an extension of the module.
func (s *signing) build(b *bench, output string, args ...string) []string {
	return append([]string{"extension", "build", "--base", b.base, "--ko", s.ko, "--name", "brd", "--version", "1.0", "--output", output}, args...)
}

// From a new key to an image whose kernel wants signatures.
func TestSigning(t *testing.T) {
	b := newBench(t)
	s := newSigning(t, b)
	t.Run("accepted", func(t *testing.T) { s.accepted(t, b) })
	t.Run("refused", func(t *testing.T) { s.refused(t, b) })
	t.Run("changed", func(t *testing.T) { s.changed(t, b) })
	t.Run("errors", func(t *testing.T) { s.errors(t, b) })
	t.Run("key exists", func(t *testing.T) { s.notReplaced(t, b) })
}

func (s *signing) accepted(t *testing.T, b *bench) {
	for _, cert := range []string{"cert.pem", "cert.der"} {
		args := []string{"--kernel-arg", enforce, "--module-certificate", filepath.Join(s.one, cert)}
		if out := b.succeeds(t, append([]string{"extension", "check", "--base", b.base, s.signed}, args...)...); out != "no findings\n" {
			t.Errorf("%s: %s", cert, out)
		}
		image := filepath.Join(t.TempDir(), "metal.raw")
		b.succeeds(t, append([]string{"build", "metal", "--base", b.base, "--extension", s.signed, "--output", image}, args...)...)
		if out := b.succeeds(t, "inspect", "--json", image); !strings.Contains(out, enforce) || !strings.Contains(out, `"brd"`) {
			t.Errorf("%s: neither argument nor extension in the image:\n%s", cert, out)
		}
	}
	// Without the argument the missing signature is the owner's affair.
	if out := b.succeeds(t, "extension", "check", "--base", b.base, s.unsigned); !strings.Contains(out, "info[signature-missing]") {
		t.Errorf("unsigned without %s: %s", enforce, out)
	}

	// kmod reads the signature in what the node gets.
	dir := t.TempDir()
	raw, root := filepath.Join(dir, "brd.raw"), filepath.Join(dir, "root")
	b.succeeds(t, "extension", "convert", s.signed, "--format", "sysext", "--output", raw)
	run(t, oracle.Tool(t, "unsquashfs"), "-no-xattrs", "-d", root, raw)
	files, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/updates/brd.ko.xz"))
	if err != nil || len(files) != 1 {
		t.Fatalf("modules %v, %v; want brd.ko.xz", files, err)
	}
	for field, want := range map[string]string{"signer": "Key One", "sig_hashalgo": "sha256", "name": "brd"} {
		if got := strings.TrimSpace(run(t, oracle.Tool(t, "modinfo"), "-F", field, files[0])); got != want {
			t.Errorf("modinfo: %s %q, want %q", field, got, want)
		}
	}
}

func (s *signing) refused(t *testing.T, b *bench) {
	unknown := []string{"brd@sha256:", "updates/brd.ko", "signed by Key One, serial number ", "whom the kernel does not know", "the kernel refuses it: " + enforce, "signature-unknown"}
	missing := []string{"brd@sha256:", "updates/brd.ko", "not signed", "the kernel refuses it: " + enforce, "signature-missing", "kiln extension build --sign-key"}
	for _, tt := range []struct {
		name, extension string
		words, args     []string
	}{
		{"no certificate", s.signed, unknown, nil},
		{"certificate of another key", s.signed, unknown, []string{"--module-certificate", filepath.Join(s.two, "cert.pem")}},
		{"not signed", s.unsigned, missing, []string{"--module-certificate", filepath.Join(s.one, "cert.pem")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"--kernel-arg", enforce}, tt.args...)
			b.checkFails(t, tt.words, append(args, tt.extension)...)
			b.fails(t, refused, tt.words, b.build(append(args, "--extension", tt.extension)...)...)
		})
	}
}

// A module that was changed after it was signed never loads, whoever is trusted.
func (s *signing) changed(t *testing.T, b *bench) {
	key, err := sign.LoadKey(filepath.Join(s.one, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := sign.LoadCertificate(filepath.Join(s.one, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	data := signedBy(t, &sign.Signer{Key: key, Certificate: cert}, read(t, s.ko))
	changed := bytes.Replace(data, []byte("alias=rd"), []byte("alias=rx"), 1)
	if bytes.Equal(data, changed) {
		t.Fatal("nothing to change in the module")
	}
	release, _ := expect(t)
	extension := b.extensionWith(t, release+"/updates/brd.ko", changed)
	words := []string{"updates/brd.ko", "signed by Key One", "nothing may change it afterwards, not even strip", "signature-bad"}
	b.checkFails(t, words, "--module-certificate", filepath.Join(s.one, "cert.pem"), extension)
	b.fails(t, refused, words, b.build("--module-certificate", filepath.Join(s.one, "cert.pem"), "--extension", extension)...)
}

func (s *signing) errors(t *testing.T, b *bench) {
	out := filepath.Join(b.dir, "x.oci")
	key, cert := filepath.Join(s.one, "key.pem"), filepath.Join(s.one, "cert.pem")
	for _, tt := range []struct {
		code  int
		words []string
		args  []string
	}{
		{usage, []string{"brd.ko: unsuitable key: the certificate of Key Two is for another key"}, s.build(b, out, "--sign-key", key, "--sign-cert", filepath.Join(s.two, "cert.pem"))},
		{usage, []string{"cert.pem: unsuitable key: no private key in it"}, s.build(b, out, "--sign-key", cert, "--sign-cert", cert)},
		{usage, []string{"key.pem: unsuitable key: PEM, but no CERTIFICATE in it"}, s.build(b, out, "--sign-key", key, "--sign-cert", key)},
		{usage, []string{"--sign-key and --sign-cert belong together"}, s.build(b, out, "--sign-key", key)},
		{usage, []string{`--sign-hash "md5", want sha256, sha384 or sha512`}, s.build(b, out, "--sign-key", key, "--sign-cert", cert, "--sign-hash", "md5")},
		{notFound, []string{"none.pem"}, s.build(b, out, "--sign-key", "none.pem", "--sign-cert", cert)},
		{notFound, []string{"none.pem"}, b.build("--module-certificate", "none.pem")},
		{usage, []string{"common name of 0 bytes, want 1 to 64"}, []string{"key", "generate", "--name", "", "--output", out}},
		{outputFails, []string{"cannot write none/key", "no such file or directory"}, []string{"key", "generate", "--name", "x", "--output", "none/key"}},
		{outputFails, []string{"cannot write none/x.oci", "no such file or directory"}, s.build(b, "none/x.oci")},
		{outputFails, []string{"cannot write none/x.tar", "no such file or directory"}, s.build(b, "none/x.tar")},
		{refused, []string{"other.ko: it is module brd", "rename it to brd.ko"}, append(s.build(b, out), "--ko", b.file(t, "other.ko", read(t, s.ko)))},
	} {
		b.fails(t, tt.code, tt.words, tt.args...)
	}
}

// A key is never written over: whatever it signed would be lost.
func (s *signing) notReplaced(t *testing.T, b *bench) {
	state := func() []string {
		t.Helper()
		var list []string
		if err := filepath.WalkDir(filepath.Dir(s.one), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			line := path + " " + fi.Mode().String() + " " + fi.ModTime().String()
			if !d.IsDir() {
				line += " " + digest(t, path)
			}
			list = append(list, line)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := state()
	if !strings.Contains(strings.Join(before, "\n"), "one/key.pem -rw------- ") {
		t.Fatalf("keys are\n%s", strings.Join(before, "\n"))
	}
	words := []string{s.one + ": file already exists; keys are not overwritten, want the name of a new directory"}
	b.fails(t, outputFails, words, "key", "generate", "--name", "Key Two", "--output", s.one+"/")
	if after := state(); !slices.Equal(before, after) {
		t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
