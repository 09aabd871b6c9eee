package imager

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/qcow2"
)

// vagrantFiles are those of a box for Vagrant's libvirt provider. Vagrant wants
// the size in whole GiB, which the profile sees to.
func vagrantFiles(i *Image) (map[string]extent.Source, error) {
	const gib = 1 << 30
	if size := i.Disk.Size(); size%gib != 0 {
		return nil, refuse("a box has a disk of whole GiB, this one has %d bytes; set disk.multiple: 1GiB", size)
	}
	disk, err := qcow2.Map(i.Disk, 0)
	if err != nil {
		return nil, err
	}
	metadata, err := json.Marshal(map[string]any{"provider": "libvirt", "format": "qcow2", "virtual_size": i.Disk.Size() / gib})
	if err != nil {
		return nil, err
	}
	m := i.request.Profile.Machine
	loader := ""
	if m.Firmware == "uefi" {
		loader = "    libvirt.loader = \"/usr/share/OVMF/OVMF_CODE.fd\"\n"
	}
	// There is no SSH and no shared folder on a node.
	file := fmt.Sprintf(`Vagrant.configure("2") do |config|
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "kvm"
    libvirt.cpus = %d
    libvirt.memory = %d
%s  end
end
`, m.CPUs, int64(m.Memory)/mib, loader)
	return map[string]extent.Source{
		"metadata.json": extent.Bytes(append(metadata, '\n')), "Vagrantfile": extent.Bytes([]byte(file)), "box.img": disk,
	}, nil
}

// writeVagrant writes the box, a tar archive.
func writeVagrant(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
	files, err := vagrantFiles(i)
	if err != nil {
		return err
	}
	return tarTree(&observer{ctx, w, progress}, files, i.request.Epoch)
}

// vagrantSize is the size of the files in a box.
func vagrantSize(i *Image) int64 {
	files, err := vagrantFiles(i)
	if err != nil {
		return 0
	}
	var n int64
	for _, src := range files {
		n += src.Size()
	}
	return n
}
