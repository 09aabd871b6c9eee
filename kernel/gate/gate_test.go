package gate_test

import (
	"bytes"
	"debug/elf"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
)

const (
	release  = "6.12.1-test"
	vermagic = release + " SMP preempt mod_unload modversions "
	modules  = "usr/lib/modules/" + release + "/"
)

const symvers = "0x11111111\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x22222222\tkobject_put\tvmlinux\tEXPORT_SYMBOL_GPL\t\n" +
	"0x33333333\tcrypto_secret\tvmlinux\tEXPORT_SYMBOL_GPL\tCRYPTO_INTERNAL\n" +
	"0x44444444\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x55555555\ttunnel_open\tnet/ipv4/udp_tunnel\tEXPORT_SYMBOL_GPL\t\n" +
	"0x66666666\tusb_open\tdrivers/usb/core/usbcore\tEXPORT_SYMBOL\t\n"

// builtinModinfo is of one driver in the kernel itself.
const builtinModinfo = "virtio_pci.license=GPL\x00virtio_pci.alias=pci:v00001AF4d*sv*sd*bc*sc*i*\x00"

const config = "CONFIG_MODVERSIONS=y\nCONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_XZ=y\n" +
	"CONFIG_FW_LOADER_COMPRESS_XZ=y\n# CONFIG_MODULE_SIG_FORCE is not set\n"

// goodModule returns the facts of a module that fits.
func goodModule(name string, change ...func(*module.Info)) *module.Info {
	i := &module.Info{Name: name, Machine: elf.EM_X86_64, Vermagic: vermagic, License: "GPL",
		Imports: module.Imports{{Name: "_printk", CRC: 0x11111111}, {Name: "module_layout", CRC: 0x44444444}}}
	for _, f := range change {
		f(i)
	}
	return i
}

func imports(list ...module.Import) func(*module.Info) {
	return func(i *module.Info) { i.Imports = append(list, i.Imports...) }
}

func exports(list ...module.Export) func(*module.Info) {
	return func(i *module.Info) { i.Exports = list }
}

// usbcore is the one module of the base.
func usbcore() *module.Info {
	return goodModule("usbcore", exports(module.Export{Name: "usb_open", CRC: 0x66666666}), func(i *module.Info) {
		i.Intree = true
		i.Aliases = []string{"usb:v1D6Bp*"}
		i.Parameters = []module.Parameter{{Name: "autosuspend", Type: "int"}, {Name: "quirks", Type: "string"}}
	})
}

func newSystem(t *testing.T, edit ...func(*gate.Files)) *gate.System {
	t.Helper()
	files := gate.Files{Config: []byte(config), Symvers: []byte(symvers), Builtin: []byte("kernel/drivers/virtio/virtio_pci.ko\n"), BuiltinModinfo: []byte(builtinModinfo)}
	for _, f := range edit {
		f(&files)
	}
	usbhid := goodModule("usbhid", imports(module.Import{Name: "usb_open", CRC: 0x66666666}), func(i *module.Info) { i.Depends = []string{"usbcore"} })
	s, err := gate.NewSystem(release, "amd64", files, []depmod.Module{{Path: "kernel/drivers/usb/core/usbcore.ko", Info: usbcore()}, {Path: "kernel/drivers/hid/usbhid.ko", Info: usbhid}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read makes a module file of facts and reads it back.
func read(t *testing.T, path string, info *module.Info) gate.Module {
	t.Helper()
	m, err := gate.Read(path, moduletest.ELF(info), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFindings(t *testing.T) {
	one := func(info *module.Info) func(t *testing.T) []gate.Layer {
		return func(t *testing.T) []gate.Layer {
			return []gate.Layer{{Name: "zfs@sha256:1f", Modules: []gate.Module{read(t, modules+"extra/"+info.Name+".ko", info)}}}
		}
	}
	at := func(path string, info *module.Info) func(t *testing.T) []gate.Layer {
		return func(t *testing.T) []gate.Layer {
			return []gate.Layer{{Name: "zfs@sha256:1f", Modules: []gate.Module{read(t, path, info)}}}
		}
	}
	for _, tc := range []struct {
		name   string
		layers func(t *testing.T) []gate.Layer
		edit   func(*gate.System)
		want   []string // code, severity, text
	}{
		{name: "good", layers: one(goodModule("zfs"))},
		{
			name: "other kernel", layers: one(goodModule("zfs", func(i *module.Info) { i.Vermagic = "6.1.0-56-amd64 SMP preempt mod_unload modversions " })),
			want: []string{"release error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: built for 6.1.0-56-amd64, the base has 6.12.1-test; rebuild it with 'kiln extension build --module-source' and the base's kernel kit"},
		},
		{
			name: "other flags", layers: one(goodModule("zfs", func(i *module.Info) { i.Vermagic = release + " SMP mod_unload " })),
			want: []string{`vermagic error extension zfs@sha256:1f: ` + modules + `extra/zfs.ko: version magic "SMP mod_unload", the base's kernel has "SMP preempt mod_unload modversions"; rebuild`},
		},
		{
			name: "other processor", layers: one(goodModule("zfs", func(i *module.Info) { i.Machine = elf.EM_AARCH64 })),
			want: []string{"arch error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: built for arm64, the base is for amd64; take the amd64 build of it"},
		},
		{
			name: "missing symbols", layers: one(goodModule("zfs", imports(module.Import{Name: "no_such", CRC: 1}, module.Import{Name: "may_be", Weak: true}))),
			want: []string{"symbol-missing error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: needs symbol no_such, which neither the kernel nor any module exports; add"},
		},
		{
			name: "many missing symbols", layers: one(goodModule("zfs", imports(module.Import{Name: "a"}, module.Import{Name: "b"}, module.Import{Name: "c"}, module.Import{Name: "d"}, module.Import{Name: "e"}))),
			want: []string{"symbol-missing error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: needs 5 symbols a, b, c, d and 1 more, which"},
		},
		{
			name: "module not in the base", layers: one(goodModule("zfs", imports(module.Import{Name: "tunnel_open", CRC: 0x55555555}))),
			want: []string{"depends error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: needs module udp_tunnel, for tunnel_open, which is neither in the base nor in an extension; add it: 'kiln extension build --kernel PACKAGE' takes it from the kernel's package, --module udp_tunnel by itself"},
		},
		{
			name: "changed CRC", layers: one(goodModule("zfs", imports(module.Import{Name: "kobject_put", CRC: 7}))),
			want: []string{"symbol-version error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: built against another version of kobject_put, the base's kernel has different CRCs; rebuild"},
		},
		{
			name: "changed CRC of a module", layers: one(goodModule("zfs", imports(module.Import{Name: "usb_open", CRC: 7}))),
			want: []string{"symbol-version error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: built against another version of usb_open, the module usbcore has different CRCs; rebuild"},
		},
		{
			name: "no CRCs", layers: one(goodModule("zfs", func(i *module.Info) { i.Imports = module.Imports{{Name: "_printk"}} })),
			want: []string{"symbol-unversed error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: has no CRC of _printk, the base's kernel wants them (CONFIG_MODVERSIONS); rebuild"},
		},
		{
			name: "license", layers: one(goodModule("zfs", imports(module.Import{Name: "kobject_put", CRC: 0x22222222}), func(i *module.Info) { i.License = "CDDL" })),
			want: []string{`symbol-gpl error extension zfs@sha256:1f: ` + modules + `extra/zfs.ko: license "CDDL", uses kobject_put, which only GPL-compatible modules may; ask`},
		},
		{
			name: "GPL module over a proprietary one", layers: func(t *testing.T) []gate.Layer {
				return []gate.Layer{
					{Name: "low", Modules: []gate.Module{read(t, modules+"extra/low.ko", goodModule("low", exports(module.Export{Name: "low_open", CRC: 9}), func(i *module.Info) { i.License = "Proprietary" }))}},
					{Name: "high", Modules: []gate.Module{read(t, modules+"extra/high.ko", goodModule("high", imports(module.Import{Name: "low_open", CRC: 9}, module.Import{Name: "kobject_put", CRC: 0x22222222})))}},
				}
			},
			want: []string{"symbol-gpl error extension high: " + modules + "extra/high.ko: uses kobject_put and module low, which is not GPL-compatible; the kernel allows only one of both; ask"},
		},
		{
			name: "name space", layers: one(goodModule("zfs", imports(module.Import{Name: "crypto_secret", CRC: 0x33333333}))),
			want: []string{"symbol-namespace error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: uses crypto_secret (CRYPTO_INTERNAL), it does not import their name spaces; add MODULE_IMPORT_NS"},
		},
		{name: "name space imported", layers: one(goodModule("zfs", imports(module.Import{Name: "crypto_secret", CRC: 0x33333333}), func(i *module.Info) { i.ImportNS = []string{"CRYPTO_INTERNAL"} }))},
		{
			name: "exports a symbol of the kernel", layers: one(goodModule("zfs", exports(module.Export{Name: "kobject_put", CRC: 1}))),
			want: []string{"symbol-duplicate error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: exports symbol kobject_put, the kernel itself does, too; the kernel will not load it"},
		},
		{
			name: "exports a symbol of the base", layers: one(goodModule("zfs", exports(module.Export{Name: "usb_open", CRC: 1}))),
			want: []string{"symbol-duplicate error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: exports symbol usb_open, the base's kernel/drivers/usb/core/usbcore.ko does, too; the kernel loads only one of them; leave one out"},
		},
		{
			name: "name of a built-in module", layers: one(goodModule("virtio_pci")),
			want: []string{"module-duplicate error extension zfs@sha256:1f: " + modules + "extra/virtio_pci.ko: a module of the name virtio_pci, that is part of the kernel itself; the kernel's cannot be replaced"},
		},
		{
			name: "name of a module of the base", layers: one(goodModule("usbcore")),
			want: []string{"module-duplicate error extension zfs@sha256:1f: " + modules + "extra/usbcore.ko: a module of the name usbcore, the base has it as kernel/drivers/usb/core/usbcore.ko; put the one that is meant to win into usr/lib/modules/6.12.1-test/updates/"},
		},
		{
			name: "takes the place of one of the base", layers: at(modules+"updates/usbcore.ko", usbcore()),
			want: []string{"module-shadow warning extension zfs@sha256:1f: " + modules + "updates/usbcore.ko: takes the place of another module usbcore, the base has it as kernel/drivers/usb/core/usbcore.ko; remove"},
		},
		{
			name: "takes the place and lacks symbols", layers: at(modules+"updates/usbcore.ko", goodModule("usbcore")),
			want: []string{"module-shadow warning ", "symbol-version error extension zfs@sha256:1f: " + modules + "updates/usbcore.ko: takes the place of the base's usbcore without the usb_open it had, the base's usbhid needs them; add"},
		},
		{
			name: "two extensions with one module", layers: func(t *testing.T) []gate.Layer {
				return []gate.Layer{
					{Name: "a", Modules: []gate.Module{read(t, modules+"extra/zfs.ko", goodModule("zfs"))}},
					{Name: "b", Modules: []gate.Module{read(t, modules+"kernel/zfs.ko", goodModule("zfs"))}},
				}
			},
			want: []string{"module-duplicate error extension b: " + modules + "kernel/zfs.ko: a module of the name zfs, extension a has it as " + modules + "extra/zfs.ko; put"},
		},
		{
			name: "directory", layers: at("usr/lib/modules/6.1.0/extra/zfs.ko", goodModule("zfs")),
			want: []string{"directory error extension zfs@sha256:1f: usr/lib/modules/6.1.0/extra/zfs.ko: not below usr/lib/modules/6.12.1-test, modprobe looks nowhere else; move it to usr/lib/modules/6.12.1-test/updates/zfs.ko"},
		},
		{
			name: "soft dependency", layers: one(goodModule("zfs", func(i *module.Info) { i.Softdeps = []string{"pre: spl usbcore post: virtio-pci"} })),
			want: []string{"softdep warning extension zfs@sha256:1f: " + modules + "extra/zfs.ko: wants to be loaded together with spl, neither"},
		},
		{
			name: "firmware", layers: one(goodModule("zfs", func(i *module.Info) { i.Firmware = []string{"a.bin", "b.bin"} })),
			want: []string{"firmware error extension zfs@sha256:1f: " + modules + "extra/zfs.ko: may ask for firmware a.bin, b.bin, neither the base nor an extension has any of it; add it below usr/lib/firmware of the extension"},
		},
		{
			name: "some firmware", layers: one(goodModule("zfs", func(i *module.Info) { i.Firmware = []string{"a.bin", "b.bin"} })),
			edit: func(s *gate.System) { s.Files = func(p string) bool { return p == "usr/lib/firmware/a.bin.xz" } },
			want: []string{"firmware-partial warning extension zfs@sha256:1f: " + modules + "extra/zfs.ko: may ask for firmware b.bin, neither"},
		},
		{
			name: "firmware that the kernel cannot decompress", layers: one(goodModule("zfs", func(i *module.Info) { i.Firmware = []string{"a.bin"} })),
			edit: func(s *gate.System) { s.Files = func(p string) bool { return p == "usr/lib/firmware/a.bin.zst" } },
			want: []string{"firmware error "},
		},
		{
			name: "firmware by pattern", layers: one(goodModule("zfs", func(i *module.Info) { i.Firmware = []string{"brcm/fw*.bin"} })),
			edit: func(s *gate.System) { s.Firmware = []string{"brcm/fw1.bin.xz"} },
		},
		{
			name: "manifest", layers: func(t *testing.T) []gate.Layer {
				return []gate.Layer{{Name: "zfs", Load: []gate.Request{{"zfs", ""}, {"usb:v1D6Bp0002", ""}, {"usbcore", `autosuspend=1 quirks="a b" dyndbg=+p`}}, Options: []gate.Request{{"usbcore", "autosusend=1"}}}}
			},
			want: []string{
				"module-unknown error extension zfs: manifest.yaml: kernel.modules names zfs, neither the base nor an extension has a module or alias of that name; add",
				"parameter error extension zfs: manifest.yaml: kernel.options gives usbcore the parameter autosusend, its parameters are autosuspend, quirks; correct the name",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSystem(t)
			if tc.edit != nil {
				tc.edit(s)
			}
			expect(t, gate.Check(s, tc.layers(t)), tc.want)
		})
	}
}

func expect(t *testing.T, got []gate.Finding, want []string) {
	t.Helper()
	for i, f := range got {
		line := string(f.Code) + " " + string(f.Severity) + " " + f.String()
		if i >= len(want) || !strings.HasPrefix(line, want[i]) {
			t.Errorf("finding %d:\n got %s\nwant %s", i, line, slices.Concat(want, make([]string, len(got)))[i])
		}
	}
	if len(got) < len(want) {
		t.Errorf("%d findings, want %d", len(got), len(want))
	}
}

func TestCompression(t *testing.T) {
	raw := moduletest.ELF(goodModule("zfs"))
	xzCRC64 := compress(t, raw, "xz", "--check=crc64")
	xzCRC32 := compress(t, raw, "xz", "--check=crc32")
	zst := compress(t, raw, "zstd", "-q")
	for _, tc := range []struct {
		file string
		data []byte
		want []string
	}{
		{"zfs.ko", raw, nil},
		{"zfs.ko.xz", xzCRC32, nil},
		{"zfs.ko.xz", xzCRC64, []string{"compression error extension x: " + modules + "zfs.ko.xz: compressed with xz and checksum 4, the kernel knows only CRC32; compress it with 'xz --check=crc32'"}},
		{"zfs.ko.zst", zst, []string{"compression error extension x: " + modules + "zfs.ko.zst: compressed with zstd, the kernel decompresses only xz; store it uncompressed"}},
		{"zfs.ko", xzCRC32, []string{"compression error extension x: " + modules + "zfs.ko: compressed with xz, the name says otherwise; rename it to zfs.ko.xz"}},
		{"zfs.ko.xz", raw, []string{"compression error extension x: " + modules + "zfs.ko.xz: not compressed, the name says otherwise; rename it to zfs.ko"}},
	} {
		m, err := gate.Read(modules+tc.file, tc.data, nil)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, gate.Check(newSystem(t), []gate.Layer{{Name: "x", Modules: []gate.Module{m}}}), tc.want)
	}
}

func TestUnreachable(t *testing.T) {
	s := newSystem(t)
	zfs := goodModule("zfs", func(i *module.Info) { i.Aliases = []string{"pci:v00008086d*"}; i.Depends = []string{"spl"} })
	layers := []gate.Layer{{Name: "zfs", Modules: []gate.Module{read(t, modules+"extra/zfs.ko", zfs)}}}
	expect(t, gate.Unreachable(s, layers, []gate.Device{
		{Name: "virtio disk", Modalias: "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00"},
		{Name: "USB", Modalias: "usb:v1D6Bp0002"},
		{Name: "NVMe", Modalias: "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"},
		{Name: "pool", Modalias: "pci:v00008086d00002922sv1sd1bc01sc06i01"},
	}), []string{
		"driver error profile: no driver for NVMe (pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02), the platform has it, and neither",
		"driver error profile: the driver for pool is zfs, which needs spl, neither the base nor an extension has that; add",
	})
	spl := gate.Layer{Name: "spl", Modules: []gate.Module{read(t, modules+"extra/spl.ko", goodModule("spl"))}}
	expect(t, gate.Unreachable(s, append(layers, spl), []gate.Device{{Name: "pool", Modalias: "pci:v00008086d00002922sv1sd1bc01sc06i01"}}), nil)
}

// Without Module.symvers the CRCs are those that the base's modules were built
// against.
func TestLearnedCRCs(t *testing.T) {
	s := newSystem(t, func(f *gate.Files) {
		f.Symvers = nil
		f.SystemMap = []byte("ffffffff81000000 R __ksymtab__printk\nffffffff81000010 R __ksymtab_kobject_put\nffffffff81000020 R __ksymtab_module_layout\n")
	})
	layer := gate.Layer{Name: "x", Modules: []gate.Module{read(t, modules+"zfs.ko", goodModule("zfs", func(i *module.Info) {
		i.Imports = module.Imports{{Name: "_printk", CRC: 5}, {Name: "kobject_put", CRC: 5}, {Name: "kobject_get", CRC: 5}}
	}))}}
	expect(t, gate.Check(s, []gate.Layer{layer}), []string{
		"symbol-missing error extension x: " + modules + "zfs.ko: needs symbol kobject_get, which",
		"symbol-version error extension x: " + modules + "zfs.ko: built against another version of _printk, the",
	})
}

func TestParseSymvers(t *testing.T) {
	for in, want := range map[string]string{
		"0x1\ta\tvmlinux\tEXPORT_SYMBOL\n0x1 b\n": "not a Module.symvers: line 2: 1 fields, want CRC, symbol, module, export and name space with tabs between them",
		"zz\ta\tvmlinux\tEXPORT_SYMBOL\t":         `not a Module.symvers: line 1: "zz\ta\tvmlinux\tEXPORT_SYMBOL\t", want a CRC such as 0x1234abcd and a symbol`,
		"0x1\ta\tvmlinux\tEXPORT\t":               `not a Module.symvers: line 1: export "EXPORT", want EXPORT_SYMBOL or EXPORT_SYMBOL_GPL`,
	} {
		if _, err := gate.ParseSymvers([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", in, err, want)
		}
	}
}

func FuzzParseSymvers(f *testing.F) {
	f.Add([]byte(symvers))
	f.Add([]byte("0x1\ta\tvmlinux\tEXPORT_SYMBOL\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := gate.ParseSymvers(data)
		if err == nil && len(got) > bytes.Count(data, []byte("\n"))+1 {
			t.Errorf("%d symbols in %d lines", len(got), bytes.Count(data, []byte("\n"))+1)
		}
	})
}
