//go:build linux

package node

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/disk"
)

// spaceInterval is how often is looked how much room there is.
const spaceInterval = 30 * time.Second

// watchSpace tells when STATE or EPHEMERAL become full.
func (n *Node) watchSpace(ctx context.Context) {
	told := map[string]bool{}
	for {
		for label, dir := range n.volumes() {
			text := full(dir)
			if text != "" && !told[label] {
				n.remark(label, "%s", text)
			}
			told[label] = text != ""
		}
		select {
		case <-time.After(spaceInterval):
		case <-ctx.Done():
			return
		}
	}
}

// volumes are the directories that partitions are mounted on, by their label.
func (n *Node) volumes() map[string]string {
	all := map[string]string{disk.State: n.options.StateDir, disk.Ephemeral: varDir}
	for label := range n.options.Damaged {
		delete(all, label)
	}
	return all
}

// full says how little room there is, if it is less than a hundredth.
func full(dir string) string {
	var s unix.Statfs_t
	switch err := unix.Statfs(dir, &s); {
	case err != nil:
		return fmt.Sprintf("%s: %v", dir, err)
	case s.Blocks > 0 && s.Bavail <= s.Blocks/100:
		return fmt.Sprintf("%s is full: %d of %d MiB are free", dir, s.Bavail*uint64(s.Bsize)>>20, s.Blocks*uint64(s.Bsize)>>20)
	case s.Files > 0 && s.Ffree <= s.Files/100:
		return fmt.Sprintf("%s is full: %d of %d inodes are free", dir, s.Ffree, s.Files)
	}
	return ""
}
