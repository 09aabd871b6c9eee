package imager

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gcetar"
	"github.com/kilnhq/kiln/imager/ova"
	"github.com/kilnhq/kiln/imager/qcow2"
	"github.com/kilnhq/kiln/imager/vhd"
	"github.com/kilnhq/kiln/imager/vhdx"
	"github.com/kilnhq/kiln/imager/vmdk"
	"github.com/kilnhq/kiln/imager/xva"
	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/profiles"
)

// form is one way to write an image. Exactly one of layout, write and files is
// set.
type form struct {
	suffix string // of the file's name
	disk   bool   // holds the disk
	skips  bool   // write does not read the holes of the disk

	// size is the number of bytes that write tells progress of, if it is not
	// that of the disk.
	size func(i *Image) int64

	// layout gives the whole file as a map, of which nothing has been read: it is
	// written sparse and in parallel, or streamed.
	layout func(ctx context.Context, i *Image) (*extent.Map, error)

	// write writes the file from its start to its end. It tells progress of the
	// bytes of the disk or, if it does not read the holes, of those of its extents.
	write func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error

	// files are what goes into a directory, or streamed into a tar archive.
	files func(i *Image) (map[string]extent.Source, error)
}

// forms are the ways to write an image, by the name that profiles have for them.
func forms(o profiles.Output) map[string]form {
	asset := func(suffix string, get func(*assets) extent.Source) form {
		return form{suffix: suffix, layout: func(_ context.Context, i *Image) (*extent.Map, error) {
			a, err := i.diskless()
			if err != nil {
				return nil, err
			}
			return extent.Concat(1, get(a))
		}}
	}
	return map[string]form{
		"raw":         {suffix: "raw", disk: true, layout: func(_ context.Context, i *Image) (*extent.Map, error) { return i.Disk, nil }},
		"raw.zst":     compressedForm("raw.zst", compress.Zstd, o.Level),
		"raw.gz":      compressedForm("raw.gz", compress.Gzip, o.Level),
		"raw.xz":      compressedForm("raw.xz", compress.XZ, o.Level),
		"qcow2":       qcow2Form(o.Compression),
		"vhd":         vhdForm("vhd", true),
		"vhd-dynamic": vhdForm("vhd", false),
		"vhdx":        {suffix: "vhdx", disk: true, layout: vhdxMap},
		"vmdk": {suffix: "vmdk", disk: true, skips: true, write: func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			return vmdk.Write(ctx, w, i.Disk, i.vmdkOptions("vmdk"), progress)
		}},
		"ova": {suffix: "ova", disk: true, skips: true, write: writeOVA},
		"gce": {suffix: "tar.gz", disk: true, size: gceSize, write: func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			return gcetar.Write(ctx, w, i.Disk, i.request.Epoch, i.request.Profile.Output.Level, progress)
		}},
		"xva": {suffix: "xva", disk: true, write: writeXVA},
		"vmdk-sparse": {suffix: "vmdk", disk: true, layout: func(_ context.Context, i *Image) (*extent.Map, error) {
			return vmdk.Map(i.Disk, i.vmdkOptions("vmdk-sparse"))
		}},
		"containerdisk": {suffix: "containerdisk.tar", disk: true, size: containerDiskSize, write: writeContainerDisk},
		"vagrant":       {suffix: "box", disk: true, size: vagrantSize, write: writeVagrant},
		"installer":     {suffix: "installer.tar", size: installerSize, write: writeInstaller},

		"iso":       {suffix: "iso", layout: isoMap},
		"pxe":       {suffix: "pxe", files: pxe},
		"uki":       asset("efi", func(a *assets) extent.Source { return a.uki }),
		"kernel":    asset("vmlinuz", func(a *assets) extent.Source { return a.kernel }),
		"initramfs": asset("initramfs", func(a *assets) extent.Source { return a.initramfs }),
		"cmdline":   asset("cmdline", func(a *assets) extent.Source { return extent.Bytes([]byte(a.cmdline + "\n")) }),
	}
}

// Formats lists the formats that images can be written in, sorted.
func Formats() []string { return slices.Sorted(maps.Keys(forms(profiles.Output{}))) }

func (i *Image) form(format string) (form, error) {
	f, ok := forms(i.request.Profile.Output)[format]
	if ok && i.converted && !f.disk {
		return form{}, refuse("output format %q is more than a disk; known for existing images: %s", format, strings.Join(DiskFormats(), ", "))
	}
	if !ok && slices.Contains(profiles.Formats(), format) {
		return form{}, refuse("output format %q cannot be written yet; --format raw writes the disk that it would hold", format)
	}
	if !ok {
		return form{}, refuse("output format %q%s", format, spelling.Hint(format, Formats()))
	}
	return f, nil
}

// FormatOf returns the format that a file's name stands for by its suffix, or "".
func FormatOf(name string) string {
	found, longest := "", 0
	for _, format := range Formats() {
		if suffix := forms(profiles.Output{})[format].suffix; strings.HasSuffix(name, "."+suffix) && len(suffix) > longest {
			found, longest = format, len(suffix)
		}
	}
	return found
}

// FileName is the name that the profile gives the file of a format.
func (i *Image) FileName(format string) (string, error) {
	f, err := i.form(format)
	if err != nil {
		return "", err
	}
	p := i.request.Profile
	return strings.NewReplacer("{NAME}", p.Name, "{ARCH}", p.Arch, "{EXT}", f.suffix).Replace(p.Output.Name), nil
}

// gceSize is the size of the archive before it is compressed.
func gceSize(i *Image) int64 {
	m, err := gcetar.Map(i.Disk, i.request.Epoch)
	if err != nil {
		return 0
	}
	return m.Size()
}

// qcow2Form is qcow2 with the given compression of its clusters.
func qcow2Form(compression string) form {
	if compression == "none" {
		return form{suffix: "qcow2", disk: true, layout: func(_ context.Context, i *Image) (*extent.Map, error) { return qcow2.Map(i.Disk, 0) }}
	}
	return form{suffix: "qcow2", disk: true, skips: true, write: func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
		dst, ok := w.(qcow2.Target)
		if !ok {
			return fmt.Errorf("%w: qcow2 with compression is written back and forth and cannot be streamed; give a file, or --set output.compression=none", ErrRefused)
		}
		options := qcow2.Options{Compression: qcow2.Zstd}
		if compression == "zlib" {
			options.Compression = qcow2.Zlib
		}
		return qcow2.Write(ctx, dst, i.Disk, options, progress)
	}}
}

func vhdForm(suffix string, fixed bool) form {
	return form{suffix: suffix, disk: true, layout: func(_ context.Context, i *Image) (*extent.Map, error) {
		return vhd.Map(i.Disk, vhd.Options{Fixed: fixed, ID: i.id.uuid("vhd"), Time: time.Unix(i.request.Epoch, 0)})
	}}
}

func vhdxMap(_ context.Context, i *Image) (*extent.Map, error) {
	o := vhdx.Options{FileWriteID: i.id.uuid("vhdx file"), DataWriteID: i.id.uuid("vhdx data"), DiskID: i.id.uuid("vhdx disk")}
	if i.Table != nil {
		o.SectorSize = i.Table.SectorSize
	}
	return vhdx.Map(i.Disk, o)
}

func (i *Image) vmdkOptions(format string) vmdk.Options {
	name, err := i.FileName(format)
	if err != nil { // which has been seen to
		name = "disk.vmdk"
	}
	return vmdk.Options{Name: name, ContentID: i.id.uuid("vmdk content"), UUID: i.id.uuid("vmdk disk")}
}

func writeXVA(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
	p := i.request.Profile
	return xva.Write(ctx, w, i.Disk, xva.Machine{
		Name: "kiln-" + p.Name + "-" + p.Arch, Description: p.Description, ID: i.id.uuid("xva"),
		CPUs: p.Machine.CPUs, Memory: int64(p.Machine.Memory), UEFI: p.Machine.Firmware == "uefi", Time: time.Unix(i.request.Epoch, 0),
	}, progress)
}

// writeOVA writes the disk in place if it can; streamed, it is compressed twice.
func writeOVA(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
	p, o := i.request.Profile, i.vmdkOptions("vmdk")
	m := ova.Machine{
		Name: "kiln-" + p.Name + "-" + p.Arch, CPUs: p.Machine.CPUs, MemoryMiB: int(p.Machine.Memory / profiles.MiB), Firmware: ova.EFI,
	}
	if i.request.Version != "" {
		m.Product, m.Version = "kiln", i.request.Version
	}
	if p.Machine.Firmware == "bios" {
		m.Firmware = ova.BIOS
	}
	pkg := ova.Package{Machine: m, Disk: o, ModTime: time.Unix(i.request.Epoch, 0)}
	if dst, ok := w.(ova.Target); ok {
		return ova.Write(ctx, dst, i.Disk, pkg, progress)
	}
	return ova.Stream(ctx, w, i.Disk, pkg, progress)
}

// compressedForm is the disk as a compressed stream.
func compressedForm(suffix string, format compress.Format, level int) form {
	return form{suffix: suffix, disk: true, write: func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
		return compress.Write(ctx, w, i.Disk, compress.Options{Format: format, Level: level}, progress)
	}}
}

// observer passes writes on, tells of them, and stops when the context ends.
type observer struct {
	ctx      context.Context
	w        io.Writer
	progress func(int64)
}

func (o *observer) Write(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := o.w.Write(p)
	o.progress(int64(n))
	return n, err
}
