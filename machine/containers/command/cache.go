//go:build linux

package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/machine/containers"
	"github.com/kilnhq/kiln/machine/imagecache"
)

// importCache brings in the image cache in a directory, and writes what became of
// it to a file. A cache that is broken is no error: what comes after it goes on.
func importCache(ctx context.Context, socket string, args []string) error {
	if len(args) != 2 {
		return errors.New("want a directory and the file for the report")
	}
	report, err := containers.ImportCache(ctx, socket, args[0])
	if err != nil {
		return err
	}
	for _, i := range report.Images {
		fmt.Println(i.State, i.Name, i.Digest)
	}
	for _, fault := range report.Faults() {
		fmt.Println(fault)
	}
	return imagecache.Write(args[1], report)
}
