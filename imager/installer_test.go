package imager

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/profiles"
)

// program is an ELF file with no code, which needs the interpreter if there is
// one.
func program(t *testing.T, machine elf.Machine, interpreter string) extent.Source {
	t.Helper()
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Shentsize: 64,
	}
	var b []byte
	if interpreter != "" {
		h.Phoff, h.Phnum = 64, 1
		p := elf.Prog64{Type: uint32(elf.PT_INTERP), Off: 64 + 56, Filesz: uint64(len(interpreter))}
		b, _ = binary.Append(nil, binary.LittleEndian, p)
		b = append(b, interpreter...)
	}
	header, err := binary.Append(nil, binary.LittleEndian, h)
	if err != nil {
		t.Fatal(err)
	}
	return extent.Bytes(append(header, b...))
}

// installerRequest is what 'kiln build installer' asks for.
func installerRequest(t *testing.T) Request {
	t.Helper()
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	e, err := extensions.Open(t.Context(), oracle.Artifact(t, "KILN_EXTENSION"), "amd64", extensions.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := profiles.Load("installer")
	if err != nil {
		t.Fatal(err)
	}
	return Request{
		Profile: p, Base: b, Extensions: []*extensions.Extension{e}, Cache: cache.Dir(t.TempDir()), Version: "v1",
		Epoch: b.Config.Epoch, Tool: program(t, elf.EM_X86_64, ""), Log: slog.New(slog.DiscardHandler),
	}
}

// installerOf returns the installer image of a request, and its layers.
func installerOf(t *testing.T, r Request) (v1.Image, []v1.Layer) {
	t.Helper()
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	img, err := i.installer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return img, layers
}

// Who has one version and loads the next one loads what is new: neither the base
// nor the extensions, which are nearly all of it.
func TestInstallerShares(t *testing.T) {
	r := installerRequest(t)
	digests := func(r Request) (list []string, large int64) {
		_, layers := installerOf(t, r)
		for _, l := range layers {
			d, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			n, err := l.Size()
			if err != nil {
				t.Fatal(err)
			}
			list, large = append(list, d.String()), max(large, n)
		}
		return list, large
	}
	// Base, extension, program, settings.
	want, large := digests(r)
	if len(want) != 4 || large < 10*mib {
		t.Fatalf("layers %v, the largest of %d bytes; want four, and the base to be one", want, large)
	}
	for name, tt := range map[string]struct {
		change func(*Request)
		same   []bool
	}{
		"nothing":  {func(*Request) {}, []bool{true, true, true, true}},
		"version":  {func(r *Request) { r.Version = "v2" }, []bool{true, true, true, false}},
		"program":  {func(r *Request) { r.Tool = extent.Bytes(append(slices.Clone(bytesOf(t, r.Tool)), "v2"...)) }, []bool{true, true, false, true}},
		"argument": {func(r *Request) { r.KernelArgs = []string{"quiet"} }, []bool{true, true, true, false}},
		"profile": {func(r *Request) {
			p := *r.Profile
			p.Name, p.Disk.Partitions.State = "other", 200*profiles.MiB
			r.Profile = &p
		}, []bool{true, true, true, false}},
	} {
		changed := r
		tt.change(&changed)
		got, _ := digests(changed)
		for i := range want {
			if (got[i] == want[i]) != tt.same[i] {
				t.Errorf("another %s: layer %d is %s, was %s; want them the same: %v", name, i, got[i], want[i], tt.same[i])
			}
		}
	}
	r.Extensions = nil
	if got, _ := digests(r); len(got) != 3 || got[0] != want[0] {
		t.Errorf("without extensions: layers %v, want the base of %v", got, want)
	}
}

func bytesOf(t *testing.T, src extent.Source) []byte {
	t.Helper()
	data, err := io.ReadAll(extent.Reader(src))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What is in the image is what OpenSource reads, and secrets are not for everybody.
func TestInstallerSource(t *testing.T) {
	r := installerRequest(t)
	p := *r.Profile
	p.MachineConfig = "token: very secret\n"
	r.Profile, r.KernelArgs, r.Strict = &p, []string{"one=1", "two"}, true
	img, layers := installerOf(t, r)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Config; !slices.Equal(got.Entrypoint, []string{"/usr/bin/kiln"}) || !slices.Contains(got.Env, SourceVariable+"=/kiln") || config.Architecture != "amd64" {
		t.Errorf("configuration %+v", got)
	}
	if text, err := json.Marshal(config); err != nil || strings.Contains(string(text), "secret") {
		t.Errorf("%v, or the machine configuration is in %s", err, text)
	}
	root := t.TempDir()
	modes := map[string]fs.FileMode{}
	for _, l := range layers {
		untar(t, l, root, modes)
	}
	if modes["usr/bin/kiln"] != 0o755 || modes["kiln/profile.yaml"] != 0o600 || modes["kiln/source.json"] != 0o644 || modes["tmp"] != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("modes %v", modes)
	}
	s, err := OpenSource(filepath.Join(root, "kiln"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Kiln != "v1" || !s.Strict || !slices.Equal(s.KernelArgs, r.KernelArgs) || s.Epoch != r.Epoch {
		t.Errorf("source %+v", s)
	}
	b, err := base.Open(s.Base, "amd64")
	if err != nil || b.Digest != r.Base.Digest {
		t.Errorf("base %+v, %v; want %s", b, err, r.Base.Digest)
	}
	e, err := extensions.Open(t.Context(), s.Extensions[0], "amd64", extensions.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, cached, err := extensions.Layer(t.Context(), cache.Dir(s.Cache), e.RootFS); err != nil || !cached {
		t.Errorf("the extension's layer must be compressed again: %v", err)
	}
	again, err := profiles.Load(s.Profile)
	if err != nil || again.MachineConfig != p.MachineConfig || again.Output.Format != "raw" {
		t.Errorf("profile %+v, %v", again, err)
	}
}

// untar writes a layer's files to root, and notes the modes.
func untar(t *testing.T, l v1.Layer, root string, modes map[string]fs.FileMode) {
	t.Helper()
	in, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(h.Name, "/")
		modes[name] = h.FileInfo().Mode()
		path := filepath.Join(root, name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeLink:
			err = os.Link(filepath.Join(root, h.Linkname), path)
		default:
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestInstallerProgram(t *testing.T) {
	for want, tool := range map[string]extent.Source{
		"": program(t, elf.EM_X86_64, ""),
		"refused: the program for the installer image is for EM_AARCH64, the image for amd64; give kiln for amd64 with --installer-program":                                  program(t, elf.EM_AARCH64, ""),
		"refused: the program for the installer image is linked dynamically; build kiln with CGO_ENABLED=0, or give another one with --installer-program":                    program(t, elf.EM_X86_64, "/lib64/ld-linux-x86-64.so.2\x00"),
		"refused: the program for the installer image is no ELF file (bad magic number '[35 33 47 98]' in record at byte 0x0); give kiln for amd64 with --installer-program": extent.Bytes([]byte("#!/bin/sh\nexec kiln\n")),
	} {
		err := checkTool(tool, "amd64")
		if want == "" && err != nil || want != "" && (fmt.Sprint(err) != want || !errors.Is(err, ErrRefused)) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestOpenSourceErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenSource(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "source.json") {
		t.Errorf("%v", err)
	}
	name := filepath.Join(dir, SourceFile)
	for data, want := range map[string]string{
		`{"version": 2}`: "refused: " + name + ": version 2, want 1",
		`{"version": 1`:  "refused: " + name + ": unexpected end of JSON input",
	} {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenSource(dir); fmt.Sprint(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := os.WriteFile(name, bytes.Repeat([]byte("["), 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSource(dir); !errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
}
