package gate

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/sign"
)

// Module is a module file of a layer.
type Module struct {
	Path        string // in the root file system: "usr/lib/modules/6.12…/extra/zfs.ko.xz"
	Info        *module.Info
	Compression Compressed
	Signature   *Signed // nil if it has none
}

// Compressed says how a module file is compressed, as its first bytes tell.
type Compressed struct {
	Format string // "", "gzip", "xz" or "zstd"
	Check  byte   // of xz: the kind of its checksums
}

// Kinds of checksum in an xz file (The .xz File Format 1.2, section 2.1.1.2).
// The kernel's decoder knows these two.
const (
	xzNone  = 0
	xzCRC32 = 1
)

// Read returns the facts of the module in data, the file as it is on disk. Its
// signature is verified with the certificates the kernel trusts.
func Read(name string, data []byte, trusted []*x509.Certificate) (Module, error) {
	plain, err := module.Decompress(name, data, module.MaxSize)
	if err != nil {
		return Module{}, err
	}
	info, err := module.Parse(name, plain)
	if err != nil {
		return Module{}, err
	}
	m := Module{Path: name, Info: info, Compression: compressed(data)}
	switch elf, sig, err := sign.Split(plain); {
	case err == nil:
		m.Signature = &Signed{By: sig.String(), Err: sig.Verify(elf, trusted)}
	case !errors.Is(err, sign.ErrUnsigned):
		return Module{}, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func compressed(data []byte) Compressed {
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		return Compressed{Format: "gzip"}
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")) && len(data) > 7:
		return Compressed{Format: "xz", Check: data[7] & 0x0f}
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Compressed{Format: "zstd"}
	}
	return Compressed{}
}

// formats are the suffixes of compressed module files, and the kernel's option
// for each: it is built with one of them.
var formats = map[string]struct{ suffix, option string }{
	"gzip": {".gz", "MODULE_COMPRESS_GZIP"},
	"xz":   {".xz", "MODULE_COMPRESS_XZ"},
	"zstd": {".zst", "MODULE_COMPRESS_ZSTD"},
}

// compression checks that the kernel can decompress the file. modprobe tells by
// the name whether it must.
func (c *checker) compression(m *placed) {
	format := m.Compression.Format
	ext := path.Ext(m.Path)
	if ext == ".ko" {
		ext = ""
	}
	can := "the kernel decompresses none"
	known := c.system.ModuleCompression()
	if known != "" {
		can = "the kernel decompresses only " + known
	}
	switch {
	case formats[format].suffix != ext:
		what := "not compressed"
		if format != "" {
			what = "compressed with " + format
		}
		c.bad(m, Compression, what, "the name says otherwise", fmt.Sprintf("rename it to %s%s", module.TrimCompression(path.Base(m.Path)), formats[format].suffix))
	case format != "" && format != known:
		c.bad(m, Compression, "compressed with "+format, can, "store it uncompressed")
	case format == "xz" && m.Compression.Check != xzNone && m.Compression.Check != xzCRC32:
		c.bad(m, Compression, fmt.Sprintf("compressed with xz and checksum %d", m.Compression.Check), "the kernel knows only CRC32", "compress it with 'xz --check=crc32'")
	}
}

// fits checks what the module was built for. If it is for something else, all
// other checks would only repeat that.
func (c *checker) fits(m *placed) bool {
	const rebuild = "rebuild it with 'kiln extension build --module-source' and the base's kernel kit"
	s := c.system
	if got := m.Info.Arch(); got != s.Arch {
		c.bad(m, Arch, "built for "+got, "the base is for "+s.Arch, "take the "+s.Arch+" build of it")
		return false
	}
	if got := m.Info.Release(); got != s.Release {
		if got == "" {
			got = "an unknown kernel"
		}
		c.bad(m, Release, "built for "+got, "the base has "+s.Release, rebuild)
		return false
	}
	if _, want, ok := strings.Cut(s.Vermagic, " "); ok {
		if _, got, _ := strings.Cut(m.Info.Vermagic, " "); strings.TrimSpace(got) != strings.TrimSpace(want) {
			c.bad(m, Vermagic, fmt.Sprintf("version magic %q", strings.TrimSpace(got)), fmt.Sprintf("the base's kernel has %q", strings.TrimSpace(want)), rebuild)
			return false
		}
	}
	return true
}

// directory checks that modprobe will look where the module lies.
func (c *checker) directory(m *placed) {
	if m.rel != "" {
		return
	}
	c.bad(m, Directory, "not below "+dirOf(c.release), "modprobe looks nowhere else", "move it to "+dirOf(c.release)+"/updates/"+path.Base(m.Path))
}

func dirOf(release string) string { return "usr/lib/modules/" + release }

// softdeps checks that what the module would like to have is there. The kernel's
// own modules also name what other configurations of the kernel have; that means
// nothing.
func (c *checker) softdeps(m *placed) {
	pre, post, _ := m.Info.SoftDeps()
	for _, name := range append(pre, post...) {
		if !c.known(name) && (!m.Info.Intree || c.system.Intree[module.Fold(name)]) {
			c.warn(m, Softdep, "wants to be loaded together with "+name, "neither the base nor an extension has it", "add it if the module cannot do without")
		}
	}
}

// firmware checks that what the module may ask for is there. Drivers name the
// firmware of every device they know, so one that is missing may not matter; if
// all is missing the device will not work.
func (c *checker) firmware(m *placed) {
	var missing []string
	for _, name := range m.Info.Firmware {
		if !c.hasFirmware(name) {
			missing = append(missing, name)
		}
	}
	const fix = "add it below usr/lib/firmware of the extension"
	switch {
	case len(missing) == 0:
	case len(missing) == len(m.Info.Firmware):
		c.bad(m, Firmware, "may ask for firmware "+some(missing), "neither the base nor an extension has any of it", fix)
	default:
		c.warn(m, FirmwarePartial, "may ask for firmware "+some(missing), "neither the base nor an extension has it", fix)
	}
}

func (c *checker) hasFirmware(name string) bool {
	for _, dir := range []string{"updates/" + c.release + "/", "updates/", c.release + "/", ""} {
		for _, suffix := range []string{"", ".xz", ".zst"} {
			switch {
			case suffix == ".xz" && !c.system.Config.Yes("FW_LOADER_COMPRESS_XZ"),
				suffix == ".zst" && !c.system.Config.Yes("FW_LOADER_COMPRESS_ZSTD"):
				continue
			}
			if c.system.Files("usr/lib/firmware/" + dir + name + suffix) {
				return true
			}
		}
	}
	if !strings.ContainsAny(name, "*?[") {
		return false
	}
	for _, have := range c.system.Firmware {
		have = strings.TrimSuffix(strings.TrimSuffix(have, ".xz"), ".zst")
		if ok, _ := path.Match(name, have); ok {
			return true
		}
	}
	return false
}
