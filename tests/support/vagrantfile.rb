# Reads a Vagrantfile as Vagrant does. Prints all of its settings in order as JSON, each as [path, arguments].
require 'json'

class Recorder < BasicObject
  def initialize(calls, path)
    @calls = calls
    @path = path
  end

  def method_missing(name, *arguments, &block)
    path = "#{@path}.#{name}"
    @calls << [path, arguments] unless arguments.empty?
    inner = ::Recorder.new(@calls, path)
    block ? block.call(inner, inner) : inner
  end

  def respond_to_missing?(*)
    true
  end
end

module Vagrant
  CALLS = []
  def self.configure(_version)
    yield Recorder.new(CALLS, 'config')
  end
end

puts(JSON.generate(ARGV.map do |file|
  Vagrant::CALLS.clear
  load(file)
  Vagrant::CALLS.dup
end))
