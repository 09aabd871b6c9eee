package imager

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/uki"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/slots"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// slot is the set of boot assets that a new image has; the other one, B, comes
// with the first upgrade.
const slot = "A"

// maxBootPart bounds the parts of a base that are read into memory: boot
// loaders and stubs.
const maxBootPart = 4 << 20

// assets are what boots: everything else on the disk serves to get at them.
type assets struct {
	kernel    extent.Source
	initramfs extent.Source
	cmdline   string // without what a boot loader adds
	uki       extent.Source
	layers    []layers.Layer
	file      extent.Source // with the layers, nil if they are in the initramfs
}

func bootAssets(r Request, s *stack) (*assets, error) {
	kernel, err := r.Base.Part(base.Vmlinuz)
	if err != nil {
		return nil, err
	}
	a := &assets{kernel: kernel.Content, layers: s.list.Layers, file: s.file}
	if a.initramfs, err = s.initramfs(r.Base, r.Epoch); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	if err := checkSplash(r); err != nil {
		return nil, err
	}
	if a.cmdline, err = cmdline(r, r.Profile.Kernel, ""); err != nil {
		return nil, err
	}
	if a.uki, err = a.unified(r, ""); err != nil {
		return nil, err
	}
	return a, nil
}

// configName is the machine configuration, on STATE and in an initramfs.
const configName = "config.yaml"

// diskless are the boot assets of a node that has no disk, and finds its
// configuration in the initramfs.
func (i *Image) diskless() (*assets, error) {
	config := i.request.Profile.MachineConfig
	if config == "" {
		return i.inRAM, nil
	}
	t, err := configTree(i.request)
	if err != nil {
		return nil, err
	}
	archive, err := cpio.Build(t)
	if err != nil {
		return nil, err
	}
	a := *i.inRAM
	if a.initramfs, err = extent.Concat(4, a.initramfs, archive); err != nil {
		return nil, err
	}
	a.uki, err = a.unified(i.request, "")
	return &a, err
}

// configTree holds the machine configuration, if there is one.
func configTree(r Request) (*tree.Tree, error) {
	t := tree.New()
	if config := r.Profile.MachineConfig; config != "" {
		ino := &tree.Inode{Mode: 0o600, ModTime: r.Epoch, Content: bytes.NewReader([]byte(config))}
		if err := t.Add(configName, ino); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// unified is a UKI; medium is as for cmdline.
func (a *assets) unified(r Request, medium string) (extent.Source, error) {
	stub, err := bootPart(r.Base, base.Stub)
	if err != nil {
		return nil, err
	}
	line, err := cmdline(r, r.Profile.Kernel, medium)
	if err != nil {
		return nil, err
	}
	text := func(name, content string) uki.Section {
		return uki.Section{Name: name, Content: extent.Bytes([]byte(content))}
	}
	sections := []uki.Section{
		text(".osrel", osRelease(r)),
		text(".uname", r.Base.Config.Release),
		text(".cmdline", line),
		{Name: ".initrd", Content: a.initramfs},
		{Name: ".linux", Content: a.kernel},
	}
	u := r.Profile.UKI
	if u.SBAT != "" {
		sections = append(sections, text(".sbat", u.SBAT))
	}
	if r.Splash != nil {
		sections = append(sections, uki.Section{Name: ".splash", Content: extent.Bytes(r.Splash)})
	}
	if len(u.Profiles) > 0 {
		sections = append(sections, text(".profile", "ID="+profiles.MainUKIProfile+"\nTITLE=kiln\n"))
	}
	for _, p := range u.Profiles {
		line, err := cmdline(r, r.Profile.Kernel.With(p.Append, p.Remove), medium)
		if err != nil {
			return nil, fmt.Errorf("uki.profiles %s: %w", p.ID, err)
		}
		sections = append(sections, text(".profile", "ID="+p.ID+"\nTITLE="+p.Title+"\n"), text(".cmdline", line))
	}
	m, err := uki.Build(stub, sections)
	if err != nil {
		return nil, fmt.Errorf("UKI: %w", err)
	}
	return m, nil
}

// checkSplash refuses what firmware would not show. systemd-stub reads BMP files.
func checkSplash(r Request) error {
	if len(r.Splash) > 0 && !bytes.HasPrefix(r.Splash, []byte("BM")) {
		return refuse("uki.splash %s: not a BMP file; convert it", r.Profile.UKI.Splash)
	}
	return nil
}

func bootPart(b *base.Base, name string) ([]byte, error) {
	p, err := b.Part(name)
	if err != nil {
		return nil, err
	}
	return p.Bytes(maxBootPart)
}

// installArgs is what the names of the kernel arguments begin with that make a
// node install onto a disk.
const installArgs = "kiln.install."

// cmdline is the kernel command line common to all boot loaders. medium are the
// arguments of what installs, and has the arguments that say so; nothing else has
// them, least of all the disk that was installed.
func cmdline(r Request, kernel profiles.Kernel, medium string) (string, error) {
	args := append([]string{"kiln.platform=" + r.Profile.Platform}, kernel.CommandLine()...)
	args = append(args, r.KernelArgs...)
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, "\n\r\x00") {
			return "", refuse("kernel argument %q: want one line that is not empty", a)
		}
	}
	if medium == "" {
		args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, installArgs) })
	} else {
		args = append(args, medium)
	}
	line := strings.Join(args, " ")
	if limit := 2048; len(line) > limit-256 { // COMMAND_LINE_SIZE, less what the boot loader adds
		return "", refuse("kernel arguments: %d bytes, the kernel takes %d; remove some", len(line), limit-256)
	}
	return line, nil
}

// checkPermanent refuses what a disk must not be told at every start.
func (a *assets) checkPermanent() error {
	for word := range strings.FieldsSeq(a.cmdline) {
		if what, ok := strings.CutPrefix(word, "kiln.reset="); ok && what != "ephemeral" {
			return refuse("kernel argument %s: would erase the node's configuration and identity at every start, want kiln.reset=ephemeral at most; "+
				"give it in a profile of the UKI (uki.profiles), or once with 'kiln meta set DISK reset-request=%s'", word, what)
		}
	}
	return nil
}

// osRelease is what systemd-boot shows of a UKI and sorts it by; see
// os-release(5) and the UAPI boot loader specification. It names no version in
// the words that the loader would sort by: the generation in the file's name
// counts, so that a node can go back to an older version.
func osRelease(r Request) string {
	return fmt.Sprintf("ID=kiln\nNAME=\"kiln\"\nPRETTY_NAME=\"kiln %s (Linux %s)\"\nKILN_VERSION=%s\n",
		r.Version, r.Base.Config.Release, r.Version)
}

// loaderConf is systemd-boot's configuration: boot at once. Without a menu a
// phantom key on a noisy serial line cannot stop the machine.
const loaderConf = "timeout menu-disabled\neditor no\n"

// efiTree is the content of the EFI system partition with the UKIs of the given
// slots.
func efiTree(r Request, machine arch.Arch, a *assets, names ...string) (*tree.Tree, error) {
	loader, err := r.Base.Part(base.Loader)
	if err != nil {
		return nil, err
	}
	files := map[string]tree.Content{
		machine.Removable:    loader.Content,
		"loader/loader.conf": bytes.NewReader([]byte(loaderConf)),
	}
	for i, s := range names {
		files["EFI/Linux/"+slots.Name{Generation: i + 1, Slot: s}.String()] = a.uki
	}
	return fileTree(files, r.Epoch)
}

// bootTree is the content of BOOT, which has the layers, if they are not in the
// initramfs, and from which GRUB boots: the first slot, and the other one empty.
func bootTree(r Request, id identity, a *assets) (*tree.Tree, error) {
	config, err := slotConfig(r, a, slot, id.uuid("disk").String())
	if err != nil {
		return nil, err
	}
	other := grub.Other(slot)
	files := map[string]tree.Content{
		slot + "/" + layers.File: nil, slot + "/" + grub.SlotConfigName: bytes.NewReader(config),
		other + "/" + layers.File: nil, other + "/" + grub.SlotConfigName: nil,
	}
	if a.file != nil {
		files[slot+"/"+layers.File] = a.file
	}
	if r.Profile.Disk.BootLoader != profiles.UEFI {
		env, err := grub.Env{{Name: "slot", Value: slot}}.Encode()
		if err != nil {
			return nil, err
		}
		files["grub/grub.cfg"], files["grub/grubenv"] = bytes.NewReader(grub.SlotsConfig(true)), bytes.NewReader(env)
		files[slot+"/"+kernelName], files[slot+"/"+initramfsName] = a.kernel, a.initramfs
		files[other+"/"+kernelName], files[other+"/"+initramfsName] = nil, nil
	}
	return fileTree(files, r.Epoch)
}

// Names of the files of a slot.
const (
	kernelName    = "vmlinuz"
	initramfsName = "initramfs"
)

// slotConfig is what GRUB boots a slot by, on the disk of that GUID.
func slotConfig(r Request, a *assets, slot, disk string) ([]byte, error) {
	config, err := grub.EncodeSlot(grub.Entry{
		Title:  fmt.Sprintf("kiln %s (Linux %s), slot %s", r.Version, r.Base.Config.Release, slot),
		Linux:  "/" + slot + "/" + kernelName,
		Initrd: "/" + slot + "/" + initramfsName,
		Args:   fmt.Sprintf("kiln.slot=%s kiln.disk=%s %s", slot, disk, a.cmdline),
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", grub.SlotConfigName, err)
	}
	return config, nil
}

// System returns what the image has in a slot, for the disk of the given GUID.
func (i *Image) System(slot, disk string) (*slots.System, error) {
	machine, err := arch.For(i.request.Profile.Arch)
	if err != nil {
		return nil, err
	}
	a := i.assets
	if err := a.checkPermanent(); err != nil {
		return nil, err
	}
	config, err := slotConfig(i.request, a, slot, disk)
	if err != nil {
		return nil, err
	}
	return &slots.System{Kernel: a.kernel, Initramfs: a.initramfs, Layers: a.file, Config: config, UKI: a.uki, Loader: machine.Removable, Time: i.request.Epoch}, nil
}

func fileTree(files map[string]tree.Content, epoch int64) (*tree.Tree, error) {
	t := tree.New()
	for name, content := range files {
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			if err := t.MkdirAll(name[:i], 0o755); err != nil {
				return nil, err
			}
		}
		if err := t.Add(name, &tree.Inode{Mode: 0o644, Content: content}); err != nil {
			return nil, err
		}
	}
	for _, ino := range t.All() {
		ino.ModTime = epoch
	}
	return t, nil
}
