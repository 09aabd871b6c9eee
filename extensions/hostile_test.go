package extensions

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// with returns a tar of a valid extension followed by headers without contents.
func with(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	buf.Write(bytes.TrimSuffix(archiveOf(t, valid()...), make([]byte, 1024)))
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestHostileContent(t *testing.T) {
	const p = "rootfs/usr/share/x"
	xattr := func(name, value string) tar.Header {
		return tar.Header{Name: p, Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrRecord + name: value}}
	}
	for what, tt := range map[string]struct {
		hdr  tar.Header
		want string // empty if it is fine
	}{
		"block device":       {tar.Header{Name: p, Typeflag: tar.TypeBlock, Devmajor: 8}, p + ": a device node"},
		"character device":   {tar.Header{Name: p, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, p + ": a device node"},
		"overlayfs whiteout": {tar.Header{Name: p, Typeflag: tar.TypeChar}, p + ": a device 0:0, which overlayfs takes for a whiteout"},
		"FIFO":               {tar.Header{Name: p, Typeflag: tar.TypeFifo}, p + ": a FIFO"},
		"whiteout":           {tar.Header{Name: "rootfs/usr/share/.wh.x", Typeflag: tar.TypeReg}, "rootfs/usr/share/.wh.x: a whiteout, which only the layers of an OCI image may have"},
		"setuid":             {tar.Header{Name: p, Typeflag: tar.TypeReg, Mode: 0o4755}, p + ": mode 4755 sets the user or the group"},
		"setgid":             {tar.Header{Name: p, Typeflag: tar.TypeReg, Mode: 0o2755}, p + ": mode 2755 sets the user or the group"},
		"setgid directory":   {tar.Header{Name: p, Typeflag: tar.TypeDir, Mode: 0o2755}, p + ": mode 2755 sets the user or the group"},
		"world-writable":     {tar.Header{Name: p, Typeflag: tar.TypeReg, Mode: 0o666}, p + ": mode 0666 lets everybody write"},
		"writable directory": {tar.Header{Name: p, Typeflag: tar.TypeDir, Mode: 0o777}, p + ": mode 0777 lets everybody write"},
		"sticky directory":   {tar.Header{Name: p, Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		"type in the mode":   {tar.Header{Name: p, Typeflag: tar.TypeReg, Mode: 0o140644}, ""}, // a socket; the type flag counts
		"user attribute":     {xattr("user.mime_type", "text/plain"), ""},
		"capability":         {xattr("security.capability", "\x01"), ""},
		"label":              {xattr("security.selinux", "system_u:object_r:bin_t:s0"), ""},
		"trusted attribute":  {xattr("trusted.overlay.opaque", "y"), p + `: extended attribute "trusted.overlay.opaque", want only user.* and security.capability`},
		"overlay attribute":  {xattr("user.overlay.redirect", "/x"), p + `: extended attribute "user.overlay.redirect"`},
		"access list":        {xattr("system.posix_acl_access", "x"), p + `: extended attribute "system.posix_acl_access"`},
		"large attribute":    {xattr("user.x", strings.Repeat("x", 65536)), p + ": 65542 bytes of extended attributes, want at most 65536"},
		"long name":          {tar.Header{Name: "rootfs/usr/share/" + strings.Repeat("x", 255), Typeflag: tar.TypeReg}, ""},
		"longer name":        {tar.Header{Name: "rootfs/usr/share/" + strings.Repeat("x", 256), Typeflag: tar.TypeReg}, "a name of 256 bytes in a path, want at most 255"},
		"long path":          {tar.Header{Name: "rootfs/usr/share/" + strings.Repeat("x/", 2040), Typeflag: tar.TypeDir}, "4097 bytes, want at most 4095"},
		"control character":  {tar.Header{Name: p + "\n", Typeflag: tar.TypeReg}, `"rootfs/usr/share/x\n": a control character in a path`},
		"long target":        {tar.Header{Name: p, Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 4096)}, p + ": symbolic link to 4096 bytes"},
		"absolute link":      {tar.Header{Name: p, Typeflag: tar.TypeSymlink, Linkname: "/usr/bin/x"}, ""},
		"hard link":          {tar.Header{Name: p, Typeflag: tar.TypeLink, Linkname: "rootfs/usr/share/demo"}, ""},
		"hard link to link":  {tar.Header{Name: p, Typeflag: tar.TypeLink, Linkname: "rootfs/usr/share/none"}, p + ": hard link to rootfs/usr/share/none, which is no file before it"},
		"hard link to dir":   {tar.Header{Name: p, Typeflag: tar.TypeLink, Linkname: "rootfs/usr"}, p + ": hard link to rootfs/usr, which is no file before it"},
		"hard link to self":  {tar.Header{Name: p, Typeflag: tar.TypeLink, Linkname: p}, "which is no file before it"},
		"large owner":        {tar.Header{Name: p, Typeflag: tar.TypeReg, Uid: 1 << 32, Format: tar.FormatPAX}, p + ": owner 4294967296:0, want 32-bit numbers"},
		"twice":              {tar.Header{Name: "rootfs/usr/share/demo", Typeflag: tar.TypeReg}, "rootfs/usr/share/demo: is there twice"},
		"twice, differently": {tar.Header{Name: "rootfs//usr/./share/demo", Typeflag: tar.TypeReg}, "rootfs/usr/share/demo: is there twice"},
		"file over dir":      {tar.Header{Name: "rootfs/usr", Typeflag: tar.TypeReg}, "rootfs/usr: is there twice"},
		"directory twice":    {tar.Header{Name: "rootfs/usr", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		"not allowed":        {tar.Header{Name: "rootfs/var/lib/x", Typeflag: tar.TypeReg}, "rootfs/var: an extension may only have files in etc/cri/conf.d, etc/ld.so.cache"},
		"not a component":    {tar.Header{Name: "rootfs/usr/localfoo/x", Typeflag: tar.TypeReg}, "rootfs/usr/localfoo: an extension may only have files in"},
		"prefix of a name":   {tar.Header{Name: "rootfs/etc/cri/conf.d2", Typeflag: tar.TypeReg}, "rootfs/etc/cri/conf.d2: an extension may only have files in"},
		"file on the way":    {tar.Header{Name: "rootfs/etc/cri", Typeflag: tar.TypeSymlink, Linkname: "../usr/share"}, "rootfs/etc/cri: an extension may only have files in"},
		"usr merge":          {tar.Header{Name: "rootfs/bin/x", Typeflag: tar.TypeReg}, "rootfs/bin: an extension may only have files in etc/cri/conf.d, etc/ld.so.cache, etc/ld.so.conf, etc/vulkan, opt, usr/bin, usr/lib, usr/libexec, usr/local, usr/sbin, usr/share; use usr/bin"},
		"allowed":            {tar.Header{Name: "rootfs/etc/cri/conf.d/x", Typeflag: tar.TypeReg}, ""},
	} {
		_, err := Open(t.Context(), write(t, with(t, tt.hdr)), "amd64", Limits{})
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

// TestHostileSquashfs has what no tar can hold.
func TestHostileSquashfs(t *testing.T) {
	for what, tt := range map[string]struct {
		name string
		ino  *tree.Inode
		want string
	}{
		"socket":            {"usr/share/x", &tree.Inode{Mode: fs.ModeSocket | 0o600}, "usr/share/x: a socket; make it when the program starts"},
		"control character": {"usr/share/a\x1b[2J", &tree.Inode{Mode: 0o644}, `"usr/share/a\x1b[2J": a control character in the name`},
		"setuid":            {"usr/bin/su", &tree.Inode{Mode: fs.ModeSetuid | 0o755}, "usr/bin/su: mode 4755 sets the user or the group"},
		"contents":          {"usr/share/x", &tree.Inode{Mode: 0o644, Content: extent.New(2 << 20)}, "usr/share/x: contents exceed 1048576 bytes"},
	} {
		tr := tree.New()
		for name, ino := range map[string]*tree.Inode{
			"usr/lib/extension-release.d/extension-release.x": {Mode: 0o644, Content: extent.Bytes([]byte("ID=_any\n"))}, tt.name: tt.ino,
		} {
			if err := errors.Join(tr.MkdirAll(filepath.Dir(name), 0o755), tr.Add(name, ino)); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "x.raw"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := squashfs.Write(t.Context(), f, tr, squashfs.Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), f.Name(), "amd64", Limits{Bytes: 1 << 20}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

func TestAllFaultsAreTold(t *testing.T) {
	var headers []tar.Header
	for i := range 15 {
		headers = append(headers, tar.Header{Name: fmt.Sprintf("rootfs/usr/share/%02d", i), Typeflag: tar.TypeFifo})
	}
	_, err := Open(t.Context(), write(t, with(t, headers...)), "amd64", Limits{})
	for _, want := range []string{"share/00: a FIFO", "share/09: a FIFO", "and 5 more"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestAllowedPaths(t *testing.T) {
	ref := write(t, with(t, tar.Header{Name: "rootfs/srv/x", Typeflag: tar.TypeReg}))
	if _, err := Open(t.Context(), ref, "amd64", Limits{Paths: []string{"", "/srv/", "usr/share"}}); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), ref, "amd64", Limits{Paths: []string{"srv", ""}}); !errors.Is(err, ErrHostile) ||
		!strings.Contains(err.Error(), "rootfs/usr: an extension may only have files in srv") {
		t.Error(err)
	}
}

// TestHardLinks follows hard links into the squashfs image, and back.
func TestHardLinks(t *testing.T) {
	link := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: "rootfs/usr/share/demo"}
	}
	e, err := Open(t.Context(), write(t, with(t, link("rootfs/usr/bin/a"), link("rootfs/usr/bin/b"))), "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "x.sqsh")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := squashfs.Write(t.Context(), f, e.RootFS, squashfs.Options{}); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "out")
	if text, err := exec.Command(oracle.Tool(t, "unsquashfs"), "-no-xattrs", "-d", dest, name).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, text)
	}
	var inodes []uint64
	for _, n := range []string{"usr/share/demo", "usr/bin/a", "usr/bin/b"} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dest, n), &st); err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, st.Ino)
		if data, err := os.ReadFile(filepath.Join(dest, n)); err != nil || string(data) != "hello" || st.Nlink != 3 {
			t.Errorf("%s: %q, %d links, %v", n, data, st.Nlink, err)
		}
	}
	if inodes[0] != inodes[1] || inodes[1] != inodes[2] {
		t.Errorf("inodes %v, want one", inodes)
	}
	img, err := e.Image(t.Context(), "amd64", 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := SaveTar(t.Context(), path, img); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), path, "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if again.RootFS.Lookup("usr/bin/a") != again.RootFS.Lookup("usr/share/demo") || again.Digest != e.Digest {
		t.Errorf("hard link became another file; digest %s, want %s", again.Digest, e.Digest)
	}
}

func TestSparse(t *testing.T) {
	const size = 1 << 30
	dir := t.TempDir()
	root := filepath.Join(dir, "ext/rootfs/usr/share")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ext/manifest.yaml"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(root, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("middle"), 700<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		name := filepath.Join(dir, format+".tar")
		if text, err := exec.Command(oracle.Tool(t, "tar"), "--sparse", "--format="+format, "-C", filepath.Join(dir, "ext"), "-cf", name, ".").CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, text)
		}
		if fi, err := os.Stat(name); err != nil || fi.Size() > 1<<20 {
			t.Fatalf("%s: a tar of %d bytes, %v; the file is not sparse", format, fi.Size(), err)
		}
		before := allocated()
		e, err := Open(t.Context(), name, "amd64", Limits{})
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if got := allocated() - before; got > 16<<20 {
			t.Errorf("%s: reading it took %d bytes", format, got)
		}
		c := e.RootFS.Lookup("usr/share/sparse").Content
		if m, ok := c.(*extent.Map); !ok || m.Size() != size || m.Allocated() > 1<<20 {
			t.Errorf("%s: %d bytes, of which %d are stored", format, c.Size(), m.Allocated())
		}
		got := make([]byte, 8)
		if _, err := c.ReadAt(got, 700<<20-1); err != nil || string(got) != "\x00middle\x00" {
			t.Errorf("%s: %q, %v", format, got, err)
		}
		if _, err := Open(t.Context(), name, "amd64", Limits{Bytes: size - 1}); !errors.Is(err, ErrHostile) ||
			!strings.Contains(err.Error(), "usr/share/sparse: contents exceed 1073741823 bytes") {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// endless is a tar header, and then zeros, as contents or, with size 0, as what
// follows the archive.
func endless(t *testing.T, size, zeros int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "bomb.tar.gz")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	z.Write(bytes.TrimSuffix(archiveOf(t, valid()...), make([]byte, 1024)))
	if size > 0 {
		if err := tar.NewWriter(z).WriteHeader(&tar.Header{Name: "rootfs/usr/share/zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	chunk := make([]byte, 1<<20)
	for range zeros / int64(len(chunk)) {
		z.Write(chunk)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBombs(t *testing.T) {
	const mib = 1 << 20
	inside := endless(t, 64*mib, 64*mib)
	if fi, err := os.Stat(inside); err != nil || fi.Size() > mib {
		t.Fatalf("%v, %v: not much of a bomb", fi, err)
	}
	before := allocated()
	if _, err := Open(t.Context(), inside, "amd64", Limits{}); err != nil {
		t.Errorf("within the limits: %v", err)
	}
	if got := allocated() - before; got > 16*mib {
		t.Errorf("64 MiB of zeros took %d bytes of memory", got)
	}
	if _, err := Open(t.Context(), inside, "amd64", Limits{Bytes: 64*mib - 1}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "rootfs/usr/share/zeros: contents exceed 67108863 bytes") {
		t.Errorf("contents: %v", err)
	}
	// What is behind the end of the archive takes time, not memory.
	behind := endless(t, 0, 300*mib)
	if _, err := Open(t.Context(), behind, "amd64", Limits{Bytes: mib, Entries: 100}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "the unpacked archive is larger than") {
		t.Errorf("behind the end: %v", err)
	}
}

func TestImplicitDirectoriesCount(t *testing.T) {
	var headers []tar.Header
	for i := range 5 {
		headers = append(headers, tar.Header{Name: fmt.Sprintf("rootfs/usr/share/%d/%sx", i, strings.Repeat("a/", 100)), Typeflag: tar.TypeReg})
	}
	if _, err := Open(t.Context(), write(t, with(t, headers...)), "amd64", Limits{Entries: 300}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "more than 300 entries") {
		t.Error(err)
	}
}

func TestHostileDirectories(t *testing.T) {
	make := func(do func(root string) error) string {
		dir := t.TempDir()
		root := filepath.Join(dir, "rootfs/usr/share")
		if err := errors.Join(os.MkdirAll(root, 0o755), os.WriteFile(filepath.Join(dir, "manifest.yaml"), []byte(manifest), 0o600), do(root)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for what, tt := range map[string]struct {
		do   func(root string) error
		want string
	}{
		"FIFO":     {func(root string) error { return syscall.Mkfifo(filepath.Join(root, "x"), 0o600) }, "rootfs/usr/share/x: p---------, want only files, directories and symbolic links"},
		"whiteout": {func(root string) error { return os.WriteFile(filepath.Join(root, ".wh.x"), nil, 0o600) }, "rootfs/usr/share/.wh.x: a whiteout"},
		"entries": {func(root string) error {
			for i := range 20 {
				if err := os.WriteFile(filepath.Join(root, fmt.Sprint(i)), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		}, "more than 20 entries"},
		"bytes": {func(root string) error { return os.Truncate(create(root, "x"), 1001) }, "rootfs/usr/share/x: contents exceed 1000 bytes"},
	} {
		_, err := Open(t.Context(), make(tt.do), "amd64", Limits{Entries: 20, Bytes: 1000})
		if !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

func create(dir, name string) string {
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		panic(err)
	}
	return p
}

func TestWhiteoutsAreForLowerLayers(t *testing.T) {
	file := func(name string) entry { return entry{name: name, kind: tar.TypeReg, content: "x"} }
	for what, tt := range map[string]struct {
		lower, upper []entry
		want         string // names of files
	}{
		"before":            {[]entry{file("d/a"), file("d/b")}, []entry{file("d/.wh.a"), file("d/a")}, "d/a d/b"},
		"after":             {[]entry{file("d/a"), file("d/b")}, []entry{file("d/a"), file("d/.wh.a")}, "d/a d/b"},
		"opaque after":      {[]entry{file("d/s/old"), file("d/b")}, []entry{file("d/s/new"), file("d/.wh..wh..opq")}, "d/s/new"},
		"opaque before":     {[]entry{file("d/s/old"), file("d/b")}, []entry{file("d/.wh..wh..opq"), file("d/s/new")}, "d/s/new"},
		"directory":         {[]entry{file("d/s/old"), file("d/b")}, []entry{file("d/.wh.s")}, "d/b"},
		"nothing there":     {[]entry{file("d/a")}, []entry{file("d/.wh.x"), file("e/.wh..wh..opq")}, "d/a"},
		"file over dir":     {[]entry{file("d/s/old")}, []entry{file("d/s")}, "d/s"},
		"directory over it": {[]entry{file("d/s")}, []entry{{name: "d/s", kind: tar.TypeDir}, file("d/s/new")}, "d/s/new"},
	} {
		tr := tree.New()
		u := newUntarrer(tr, true, Limits{})
		for _, l := range [][]entry{tt.lower, tt.upper} {
			if err := u.archive(bytes.NewReader(archiveOf(t, l...)), nil); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		var got []string
		for name, ino := range tr.All() {
			if ino.Mode.IsRegular() {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, want %s", what, got, tt.want)
		}
	}
	for _, name := range []string{"d/.wh.", "d/.wh..", "d/.wh..."} {
		err := untar(bytes.NewReader(archiveOf(t, file(name))), nil, tree.New(), true, Limits{})
		if !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), name+": a whiteout of no file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A layer may not be written through a link of a lower one.
	u := newUntarrer(tree.New(), true, Limits{})
	if err := u.archive(bytes.NewReader(archiveOf(t, entry{name: "l", kind: tar.TypeSymlink, content: "/etc"})), nil); err != nil {
		t.Fatal(err)
	}
	if err := u.archive(bytes.NewReader(archiveOf(t, file("l/passwd"))), nil); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "l is a symbolic link to /etc, want a directory") {
		t.Error(err)
	}
}

// TestLimitsAreForAllLayers: an image cannot take the limit once per layer.
func TestLimitsAreForAllLayers(t *testing.T) {
	u := newUntarrer(tree.New(), true, Limits{Bytes: 1500})
	layer := func() error {
		return u.archive(bytes.NewReader(archiveOf(t, entry{name: "x", kind: tar.TypeReg, content: strings.Repeat("x", 1000)})), nil)
	}
	if err := layer(); err != nil {
		t.Fatal(err)
	}
	if err := layer(); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "x: contents exceed 1500 bytes") {
		t.Error(err)
	}
}

// TestSpool crosses the size from which contents go to a file.
func TestSpool(t *testing.T) {
	s := spool{memory: spoolMemory - 10}
	var all []tree.Content
	texts := []string{"in memory", "in a file", strings.Repeat("long ", spoolChunk), ""}
	for _, text := range texts {
		c, err := s.add(strings.NewReader(text), int64(len(text)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for i, c := range all {
		got, err := io.ReadAll(extent.Reader(c))
		if err != nil || string(got) != texts[i] {
			t.Errorf("content %d: %d bytes, %v", i, len(got), err)
		}
	}
	if s.file == nil {
		t.Fatal("no file was used")
	}
	if _, err := os.Stat(s.file.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file has a name still: %v", err)
	}
	if _, err := s.add(strings.NewReader("short"), 6); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// BenchmarkMillion reads an archive of a million empty files.
func BenchmarkMillion(b *testing.B) {
	const n = 998_000
	name := filepath.Join(b.TempDir(), "x.tar")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	tw.WriteHeader(&tar.Header{Name: "manifest.yaml", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(manifest))})
	io.WriteString(tw, manifest)
	for i := range n {
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("rootfs/usr/share/%03d/%03d", i/1000, i%1000), Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			b.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		e, err := Open(b.Context(), name, "amd64", Limits{})
		if err != nil {
			b.Fatal(err)
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/n, "heap-B/entry")
		runtime.KeepAlive(e)
	}
}
