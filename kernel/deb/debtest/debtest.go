// Package debtest writes small Debian packages for tests.
package debtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// File is one file of a package. Names are relative; a name that ends in a
// slash is a directory.
type File struct {
	Name    string
	Data    string
	Mode    int64  // permissions; 0 is 0644, or 0755 for a directory
	Symlink string // target of a symbolic link
	Link    string // name of an earlier file that this is a hard link to
	Header  func(*tar.Header)
}

// Write writes name_version_arch.deb with the files into dir and returns its
// path.
func Write(t testing.TB, dir, name, version, arch string, files ...File) string {
	t.Helper()
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Nobody <nobody@example.org>\n"+
		"Installed-Size: 1\nDepends: libc6 (>= 2.36), debconf\nDescription: a test\n of a package\n", name, version, arch)
	p := filepath.Join(dir, name+"_"+version+"_"+arch+".deb")
	if err := os.WriteFile(p, Build(t, control, "zst", files...), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// Build returns a package with the control file and the files; compression is
// "", "gz" or "zst".
func Build(t testing.TB, control, compression string, files ...File) []byte {
	t.Helper()
	ext := ""
	if compression != "" {
		ext = "." + compression
	}
	return Archive(
		Member{"debian-binary", []byte("2.0\n")},
		Member{"control.tar" + ext, compress(t, compression, Tar(t, File{Name: "./"}, File{Name: "./control", Data: control}))},
		Member{"data.tar" + ext, compress(t, compression, Tar(t, files...))},
	)
}

// Member is one file of an ar archive.
type Member struct {
	Name string
	Data []byte
}

// Archive returns an ar archive.
func Archive(members ...Member) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.Name, 1700000000, 0, 0, 0o100644, len(m.Data))
		b.Write(m.Data)
		if len(m.Data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// Tar returns a tar archive of the files, all from the same second.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg,
			ModTime: time.Unix(1700000000, 0), Uname: "root", Gname: "root", Format: tar.FormatGNU,
		}
		if f.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case f.Symlink != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Symlink, 0o777
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.Link
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
			if f.Mode == 0 {
				h.Mode = 0o755
			}
		}
		if f.Header != nil {
			f.Header(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, f.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "":
		return data
	case "gz":
		w = gzip.NewWriter(&b)
	case "zst":
		z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		t.Fatalf("no compression %q", how)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
