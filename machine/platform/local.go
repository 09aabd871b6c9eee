package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/machine/platform/store"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// saved reads a configuration from STATE.
func saved(load func() ([]byte, error)) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		data, err := load()
		if errors.Is(err, store.ErrNone) {
			return nil, fmt.Errorf("%w: %w", ErrNone, err)
		}
		return data, err
	}
}

func (e *Environment) fromMeta(context.Context) ([]byte, error) {
	value, ok, err := e.Meta(meta.MachineConfig)
	if err != nil {
		return nil, err
	}
	if !ok || value == "" {
		return nil, fmt.Errorf("%w: META has no value %s", ErrNone, meta.MachineConfig.Name())
	}
	return []byte(value), nil
}

func (e *Environment) fromImage(context.Context) ([]byte, error) {
	f, err := os.Open(e.Image)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: none was built into the image", ErrNone)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(data) == 0 {
		return nil, fmt.Errorf("%w: an empty one was built into the image", ErrNone)
	}
	return data, err
}

// fromVolume calls read with the volume that has one of the labels. If there is no
// such volume, or read finds no file there, that is temporary and ErrNone at once:
// none so far.
func (e *Environment) fromVolume(read func(*volume.Volume) error, labels ...string) error {
	devices, err := e.Devices()
	if err != nil {
		return err
	}
	v, err := volume.Find(devices, labels...)
	if errors.Is(err, volume.ErrNotFound) {
		return temporary("%w: %w", ErrNone, err)
	}
	if err != nil {
		return err
	}
	defer v.Close()
	err = read(v)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	return err
}

// file reads one file of the volume with one of the labels.
func (e *Environment) file(name string, limit int64, labels ...string) (data []byte, err error) {
	err = e.fromVolume(func(v *volume.Volume) error {
		data, err = v.ReadFile(name, limit)
		return err
	}, labels...)
	return data, err
}

// userData reads one file of the volume with one of the labels; an empty one is none.
func (e *Environment) userData(name string, labels ...string) ([]byte, error) {
	data, err := e.file(name, MaxSize, labels...)
	if err == nil && len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrNone, name)
	}
	return data, err
}

// optional reads a file of a volume that may not be there.
func optional(v *volume.Volume, name string) ([]byte, error) {
	data, err := v.ReadFile(name, maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
