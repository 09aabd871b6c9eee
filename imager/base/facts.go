package base

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/depmod"
)

// maxFacts bounds a part with facts, as stored and unpacked.
const maxFacts = 256 << 20

// Modules are the facts about the kernel modules of a base: what the index of
// an extended system is made from, without reading a module again.
type Modules struct {
	Modules        []depmod.Module
	Order          []byte // modules.order
	Builtin        []byte // modules.builtin
	BuiltinModinfo []byte // modules.builtin.modinfo
	SystemMap      []byte // if the kernel came with one
}

// Modules returns the facts about the base's kernel modules, which are read
// once. The caller must not modify them.
func (b *Base) Modules() (*Modules, error) { return b.modules() }

func (b *Base) readModules() (*Modules, error) {
	var m Modules
	if err := b.facts(ModuleFacts, &m.Modules); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		data *[]byte
	}{
		{ModulesOrder, &m.Order}, {ModulesBuiltin, &m.Builtin}, {BuiltinModinfo, &m.BuiltinModinfo}, {SystemMap, &m.SystemMap},
	} {
		p, err := b.Part(f.name)
		if errors.Is(err, ErrPart) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if *f.data, err = p.Bytes(maxFacts); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

// Trusted returns the certificates of the keys whose signatures of modules the
// kernel accepts by itself.
func (b *Base) Trusted() ([]*x509.Certificate, error) {
	p, err := b.Part(Certificates)
	if errors.Is(err, ErrPart) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := p.Bytes(maxFacts)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrFormat, Certificates, err)
		}
		list = append(list, c)
	}
	return list, nil
}

// Files returns the type and permissions of every path in the base's root file
// system.
func (b *Base) Files() (map[string]fs.FileMode, error) {
	var files map[string]fs.FileMode
	return files, b.facts(Files, &files)
}

func (b *Base) facts(name string, v any) error {
	p, err := b.Part(name)
	if err != nil {
		return err
	}
	data, err := p.Bytes(maxFacts)
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFacts))
	if err != nil {
		return err
	}
	defer z.Close()
	if data, err = z.DecodeAll(data, nil); err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
	}
	return nil
}

// encodeFacts is the reverse of facts.
func encodeFacts(v any) (extent.Source, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return extent.Bytes(z.EncodeAll(data, nil)), nil
}
